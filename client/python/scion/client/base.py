"""What both clients have in common: the methods; and streams that can be left at any time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

from scion.client.types import Answer, Chunk, Domains, Request, Score, Token

Self = TypeVar("Self", bound="BaseClient")


class Stream(abc.ABC):
    """An answer as it comes: iterate over its chunks, the last of which has `finish`.

    Leaving it, by close() or the end of a `with`, frees the request on the server within one step. close() may be
    called from another thread; the iteration then ends. Iterating raises ScionError as the call would.
    """

    def __iter__(self) -> Iterator[Chunk]:
        return self

    @abc.abstractmethod
    def __next__(self) -> Chunk: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class BaseClient(abc.ABC):
    """Methods may be called from several threads at once. All raise ScionError.

    `timeout`: of the whole call, in seconds; beyond it the call ends with DEADLINE_EXCEEDED. None: the server's limit.
    """

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        domain: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        model: str | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A text that goes on after the prompt, which is text or token ids.

        domain: None is the model's default; NOT_FOUND, with the domains that there are, for one that there is not.
        max_tokens: None is to the end of the context. temperature 0 is greedy. The same seed gives the same text, over
        both transports. logprobs: of every token, and of so many alternatives (0 to 20). model: "name" or
        "name@domain". cache_salt: only requests of the same one share the prefix cache.
        """
        with self.stream(prompt, domain=domain, max_tokens=max_tokens, temperature=temperature, top_k=top_k,
                         top_p=top_p, seed=seed, logit_bias=logit_bias, stop=stop, ignore_eos=ignore_eos,
                         logprobs=logprobs, model=model, cache_salt=cache_salt, timeout=timeout) as chunks:
            finish = None
            text: list[str] = []
            tokens: list[Token] = []
            for chunk in chunks:
                text.append(chunk.text)
                tokens += chunk.tokens
                finish = chunk.finish
        assert finish is not None  # a stream without it has raised
        return Answer("".join(text), tuple(tokens), finish.reason, finish.usage)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        domain: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        model: str | None = None,
        cache_salt: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """The same, as it comes."""
        return self._stream(Request(
            prompt=prompt if isinstance(prompt, str) else tuple(prompt), domain=domain, max_tokens=max_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, logit_bias=dict(logit_bias or {}),
            stop=(stop,) if isinstance(stop, str) else tuple(stop), ignore_eos=ignore_eos, logprobs=logprobs,
            model=model, cache_salt=cache_salt), timeout)

    @abc.abstractmethod
    def _stream(self, request: Request, timeout: float | None) -> Stream: ...

    @abc.abstractmethod
    def score(self, prompt: str | Sequence[int], *, domain: str | None = None, timeout: float | None = None) -> Score:
        """The log-likelihood of every token of a text, or of token ids, but the first. A text gets BOS as the
        tokenizer's own files say."""

    @abc.abstractmethod
    def domains(self, *, timeout: float | None = None) -> Domains:
        """The domains, their sizes and their load since the server's start."""

    @abc.abstractmethod
    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False,
                 timeout: float | None = None) -> list[int]:
        """add_special: BOS and the like as the tokenizer's files say. parse_special: the text's special-token strings
        are special tokens, and not the text of their names."""

    @abc.abstractmethod
    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = False,
                   timeout: float | None = None) -> bytes:
        """Bytes, since tokens may end inside a character."""

    @abc.abstractmethod
    def close(self) -> None: ...

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
