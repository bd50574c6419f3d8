"""Who computes log-likelihoods. A scorer has the model's domains, its tokenizer, and the sum over windows."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from scion.evaluation.texts import EvalError

if TYPE_CHECKING:
    from scion.client import BaseClient


class Scorer(Protocol):
    description: str  # what measures, for people
    domains: Sequence[str]

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Special tokens' strings in the text are text; add_special: with the tokens that come before a text (BOS)."""

    def log_likelihood(self, domain: str, windows: Sequence[Sequence[int]]) -> float:
        """The sum of the natural logarithms of the probabilities of every token of a window but its first, given those
        before it, over all windows."""


class ServerScorer:
    """A moe-serve: the figures of `moe-client score --matrix`. server: "http://host:port", or "host:port" of its gRPC."""

    _CALLS_AT_ONCE = 4  # what a text scores does not depend on its neighbours in a batch

    def __init__(self, server: str) -> None:
        """EvalError: no server there."""
        from scion.client import Client, ScionError
        try:
            self._client: BaseClient
            if "://" in server:
                self._client = Client(server)
            else:
                from scion.client import GrpcClient
                self._client = GrpcClient(server)
            served = self._client.domains()
        except (ScionError, ValueError) as error:
            raise EvalError(f"{server}: {error}") from None
        self._failure = ScionError
        self._threads = ThreadPoolExecutor(self._CALLS_AT_ONCE)
        self.domains = served.names
        self.description = f"moe-serve, model {served.model}"

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        try:
            return self._client.tokenize(text, add_special=add_special)
        except self._failure as error:
            raise EvalError(f"the server can't tokenize: {error}") from None

    def log_likelihood(self, domain: str, windows: Sequence[Sequence[int]]) -> float:
        def score(window: Sequence[int]) -> float:
            return sum(self._client.score(window, domain=domain).logprobs)
        try:
            return sum(self._threads.map(score, windows))
        except self._failure as error:
            raise EvalError(f"the server can't score: {error}") from None

    def __enter__(self) -> ServerScorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()


class TorchScorer:
    """The Hugging Face class, in fp32."""

    _BATCH_TOKENS = 4096  # of a batch, with the padding: bounds memory for logits

    def __init__(self, model: pathlib.Path) -> None:
        """EvalError: no such model, or one without a tokenizer."""
        import torch
        from tokenizers import Tokenizer

        from scion.modeling_scion import ScionForCausalLM
        if not (model / "config.json").is_file():
            raise EvalError(f"{model}: no model directory, it has no config.json")
        if not (model / "tokenizer.json").is_file():
            raise EvalError(f"{model}: a text needs the model's tokenizer, and there is no tokenizer.json")
        try:
            self._model = ScionForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise EvalError(f"{model}: {error}") from None
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        self.domains = [domain["name"] for domain in self._model.config.domains]
        self.description = f"PyTorch {torch.__version__}, fp32"

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special).ids

    def log_likelihood(self, domain: str, windows: Sequence[Sequence[int]]) -> float:
        import torch
        total = 0.0
        by_length = sorted(windows, key=len)
        with torch.inference_mode():
            while by_length:
                rows = max(1, self._BATCH_TOKENS // len(by_length[-1]))
                batch, by_length = by_length[-rows:], by_length[:-rows]
                longest = len(batch[-1])
                # Padded at the end, where no token that counts looks.
                ids = torch.tensor([[*window, *[0] * (longest - len(window))] for window in batch])
                scores = self._model(input_ids=ids, domain=domain, use_cache=False).logits.log_softmax(-1)
                of_next = scores[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
                for row, window in enumerate(batch):
                    total += of_next[row, :len(window) - 1].sum().item()
        return total
