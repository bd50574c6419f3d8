"""The client over gRPC. Needs the extra "client": grpcio and the generated stubs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from scion.client.base import BaseClient, Stream
from scion.client.errors import ScionError
from scion.client.types import Chunk, Domain, Domains, Finish, Request, Score, Token, TopLogprob, Usage
from scion.v1 import inference_pb2 as pb
from scion.v1 import inference_pb2_grpc

Answered = TypeVar("Answered")


class GrpcClient(BaseClient):
    """address: "host:port". channel: one of your own instead (TLS, other options), which close() leaves open.
    metadata: sent with every call."""

    def __init__(self, address: str = "127.0.0.1:8081", *, channel: grpc.Channel | None = None,
                 metadata: Mapping[str, str] | None = None) -> None:
        self._own_channel = grpc.insecure_channel(address) if channel is None else None
        self._stub = inference_pb2_grpc.InferenceStub(channel or self._own_channel)
        self._metadata = tuple((metadata or {}).items())

    def _call(self, method: Callable[..., Answered], request: Any, timeout: float | None) -> Answered:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _error(error) from None

    def _stream(self, request: Request, timeout: float | None) -> Stream:
        return _GrpcStream(self._stub.Generate(_to_proto(request), timeout=timeout, metadata=self._metadata))

    def score(self, prompt: str | Sequence[int], *, domain: str | None = None, timeout: float | None = None) -> Score:
        answer = self._call(self._stub.Score, pb.ScoreRequest(domain=domain, **_prompt(prompt)), timeout)
        return Score(tuple(answer.token_ids), tuple(answer.logprobs), answer.total_logprob, answer.domain)

    def domains(self, *, timeout: float | None = None) -> Domains:
        answer = self._call(self._stub.ListDomains, pb.ListDomainsRequest(), timeout)
        return Domains(answer.model, answer.default_domain, tuple(
            Domain(name=d.name, num_experts=d.num_experts, generation=d.generation, weight_bytes=d.weight_bytes,
                   requests=d.requests, prompt_tokens=d.prompt_tokens, generated_tokens=d.generated_tokens)
            for d in answer.domains))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False,
                 timeout: float | None = None) -> list[int]:
        request = pb.TokenizeRequest(text=text, add_special=add_special, parse_special=parse_special)
        return list(self._call(self._stub.Tokenize, request, timeout).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = False,
                   timeout: float | None = None) -> bytes:
        request = pb.DetokenizeRequest(token_ids=token_ids, skip_special=skip_special)
        return bytes(self._call(self._stub.Detokenize, request, timeout).text)

    def close(self) -> None:
        if self._own_channel is not None:
            self._own_channel.close()


class _GrpcStream(Stream):
    def __init__(self, call: Any) -> None:
        self._call = call
        self._closed = False

    def __next__(self) -> Chunk:
        try:
            return _to_chunk(next(self._call))
        except grpc.RpcError as error:
            if self._closed:
                raise StopIteration from None
            raise _error(error) from None

    def close(self) -> None:
        self._closed = True
        self._call.cancel()


def _error(error: grpc.RpcError) -> ScionError:
    return ScionError(error.code().name, error.details() or "")


def _prompt(prompt: str | Sequence[int]) -> dict[str, Any]:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": pb.TokenIds(ids=prompt)}


def _to_proto(request: Request) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p,
                           seed=request.seed, logit_bias=request.logit_bias)
    return pb.GenerateRequest(domain=request.domain, max_tokens=request.max_tokens, sampling=sampling,
                              stop=request.stop, ignore_eos=request.ignore_eos, logprobs=request.logprobs,
                              model=request.model, cache_salt=request.cache_salt, **_prompt(request.prompt))


def _to_chunk(message: pb.GenerateResponse) -> Chunk:
    finish = None
    if message.HasField("finish"):
        usage = message.finish.usage
        finish = Finish("stop" if message.finish.reason == pb.Finish.STOP else "length",
                        Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens))
    return Chunk(message.text, tuple(
        Token(token.id, token.logprob if token.HasField("logprob") else None,
              tuple(TopLogprob(bytes(top.token), top.logprob) for top in token.top_logprobs))
        for token in message.tokens), finish)
