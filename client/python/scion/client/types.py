"""What goes to a server and what comes back: the same over both transports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Request:
    """prompt: text, or token ids as they are. None: as the server has it."""

    prompt: str | tuple[int, ...]
    domain: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    model: str | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class TopLogprob:
    token: bytes
    logprob: float  # natural logarithm


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float | None = None  # where log-probabilities were asked for
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0  # of the prompt's, those that the prefix cache had


@dataclass(frozen=True)
class Finish:
    """reason: "stop" (end of text, or a stop string), or "length" (max_tokens, or the end of the context)."""

    reason: Literal["stop", "length"]
    usage: Usage


@dataclass(frozen=True)
class Chunk:
    """text: what has become certain with these tokens; may be empty. finish: in the last chunk only."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[Token, ...]
    finish_reason: Literal["stop", "length"]
    usage: Usage


@dataclass(frozen=True)
class Score:
    """logprobs[i] belongs to token_ids[i + 1]: the first token has no predecessor and no score."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    total_logprob: float
    domain: str


@dataclass(frozen=True)
class Domain:
    name: str
    num_experts: int
    generation: int
    weight_bytes: int
    requests: int
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Domains:
    model: str
    default_domain: str
    domains: tuple[Domain, ...]

    @property
    def names(self) -> list[str]:
        return [domain.name for domain in self.domains]
