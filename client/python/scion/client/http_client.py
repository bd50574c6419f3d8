"""The client over HTTP. Needs nothing but Python."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from scion.client.base import BaseClient, Stream
from scion.client.errors import STATUS_OF_HTTP, STATUS_OF_TYPE, ScionError
from scion.client.types import Chunk, Domain, Domains, Finish, Request, Score, Token, TopLogprob, Usage

_MAX_EVENT_BYTES = 1 << 24

Result = TypeVar("Result")


class Client(BaseClient):
    """url: "http://host:port", or https; a path in it goes before those of the API. headers: sent with every call.

    Every call has a connection of its own. A domain's `generation` and counters are the server's.
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", *, headers: Mapping[str, str] | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server: http://host:port")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = dict(headers or {})

    def _json(self, method: str, path: str, body: Any, timeout: float | None) -> Any:
        exchange = self._exchange(method, path, body, timeout)
        try:
            return json.loads(exchange.read_all())
        finally:
            exchange.close()

    def _exchange(self, method: str, path: str, body: Any, timeout: float | None) -> _Exchange:
        connection = self._kind(self._host, self._port)
        return _Exchange(connection, method, self._path + path, body, self._headers, timeout)

    def _stream(self, request: Request, timeout: float | None) -> Stream:
        return _HttpStream(self._exchange("POST", "/v1/completions", _to_json(request), timeout))

    def score(self, prompt: str | Sequence[int], *, domain: str | None = None, timeout: float | None = None) -> Score:
        answer = self._json("POST", "/v1/score", _without_none({**_prompt(prompt), "domain": domain}), timeout)
        return Score(tuple(answer["token_ids"]), tuple(answer["logprobs"]), answer["total_logprob"], answer["domain"])

    def domains(self, *, timeout: float | None = None) -> Domains:
        answer = self._json("GET", "/v1/domains", None, timeout)
        return Domains(answer["model"], answer["default_domain"], tuple(Domain(**d) for d in answer["domains"]))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False,
                 timeout: float | None = None) -> list[int]:
        body = {"text": text, "add_special": add_special, "parse_special": parse_special}
        ids: list[int] = self._json("POST", "/v1/tokenize", body, timeout)["token_ids"]
        return ids

    def detokenize(self, token_ids: Sequence[int], *, skip_special: bool = False,
                   timeout: float | None = None) -> bytes:
        body = {"token_ids": list(token_ids), "skip_special": skip_special}
        return bytes(self._json("POST", "/v1/detokenize", body, timeout)["bytes"])

    def close(self) -> None:
        """Nothing is held between calls."""


class _Exchange:
    """One request and its answer, within a deadline. Raises ScionError."""

    def __init__(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any,
                 headers: Mapping[str, str], timeout: float | None) -> None:
        self._connection = connection
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._closed = False
        self._busy = threading.Lock()  # held by the thread that reads, for as long as no other may close the connection
        payload = None if body is None else json.dumps(body).encode()
        kind = {} if payload is None else {"Content-Type": "application/json"}
        connection.timeout = timeout
        self._within_deadline(connection.connect)
        # Ours beyond the connection's own idea of when it is done: for the deadline, and for leaving early.
        self._socket: socket.socket = connection.sock
        self._within_deadline(lambda: connection.request(method, path, payload, {**kind, **headers}))
        self._response: http.client.HTTPResponse = self._within_deadline(connection.getresponse)
        if self._response.status != 200:
            try:
                raise _error(self._response.status, self.read_all())
            finally:
                self.close()

    def read_all(self) -> bytes:
        return self._within_deadline(self._response.read)

    def read_line(self) -> bytes | None:
        """None after close(). UNAVAILABLE where the server ends without having said so."""
        try:
            line = self._within_deadline(lambda: self._response.readline(_MAX_EVENT_BYTES))
        except ScionError:
            if self._closed:
                return None
            raise
        if self._closed:
            return None
        if not line:
            raise ScionError("UNAVAILABLE", "the answer ended before its end")
        return line

    def close(self) -> None:
        """From any thread. One that reads wakes up, and closes the connection itself."""
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._busy.acquire(blocking=False):
            self._connection.close()
            self._busy.release()

    def _within_deadline(self, step: Callable[[], Result]) -> Result:
        try:
            if self._deadline is not None:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if hasattr(self, "_socket"):
                    self._socket.settimeout(left)
            with self._busy:
                return step()
        except TimeoutError:
            raise self._failed("DEADLINE_EXCEEDED", f"no answer within {self._timeout} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed("UNAVAILABLE", f"{self._connection.host}:{self._connection.port}: "
                                              f"{str(error) or type(error).__name__}") from None
        finally:
            if self._closed:
                self._connection.close()

    def _failed(self, status: str, message: str) -> ScionError:
        self._connection.close()
        return ScionError(status, message)


class _HttpStream(Stream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._reason: str | None = None
        self._ended = False

    def __next__(self) -> Chunk:
        while not self._ended and (line := self._exchange.read_line()) is not None:
            line = line.rstrip(b"\r\n")
            if line == b"data: [DONE]":
                self.close()
            elif line.startswith(b"data: "):
                chunk = self._read_event(json.loads(line[len(b"data: "):]))
                if chunk is not None:
                    return chunk
        raise StopIteration

    def _read_event(self, event: dict[str, Any]) -> Chunk | None:
        if "error" in event:
            self.close()
            raise _error_of(event["error"], STATUS_OF_TYPE.get(event["error"].get("type", ""), "INTERNAL"))
        if not event["choices"]:  # the usage comes after the reason
            usage = event["usage"]
            cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
            reason: Literal["stop", "length"] = "stop" if self._reason == "stop" else "length"
            return Chunk("", (), Finish(reason, Usage(usage["prompt_tokens"], usage["completion_tokens"], cached)))
        choice = event["choices"][0]
        if choice["finish_reason"] is not None:
            self._reason = choice["finish_reason"]
            return None
        return Chunk(choice["text"], _tokens(choice))

    def close(self) -> None:
        self._ended = True
        self._exchange.close()


def _error(http_status: int, body: bytes) -> ScionError:
    status = STATUS_OF_HTTP.get(http_status, "INTERNAL")
    try:
        return _error_of(json.loads(body)["error"], status)
    except (ValueError, KeyError, TypeError):
        return ScionError(status, f"HTTP status {http_status}: {body[:200]!r}")


def _error_of(error: Mapping[str, Any], status: str) -> ScionError:
    return ScionError(status, str(error["message"]))


def _prompt(prompt: str | Sequence[int]) -> dict[str, Any]:
    return {"prompt": prompt if isinstance(prompt, str) else list(prompt)}


def _without_none(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


def _to_json(request: Request) -> dict[str, Any]:
    return _without_none({
        **_prompt(request.prompt), "domain": request.domain, "max_tokens": request.max_tokens,
        "temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p, "seed": request.seed,
        "logit_bias": {str(token): bias for token, bias in request.logit_bias.items()}, "stop": list(request.stop),
        "ignore_eos": request.ignore_eos, "logprobs": request.logprobs, "model": request.model,
        "cache_salt": request.cache_salt, "stream": True, "stream_options": {"include_usage": True},
        "return_token_ids": True})


def _tokens(choice: Mapping[str, Any]) -> tuple[Token, ...]:
    ids, scores = choice["token_ids"], choice["logprobs"]
    if scores is None:
        return tuple(Token(token) for token in ids)
    return tuple(Token(token, logprob, tuple(TopLogprob(_token_bytes(name), value) for name, value in top.items()))
                 for token, logprob, top in zip(ids, scores["token_logprobs"], scores["top_logprobs"]))


def _token_bytes(name: str) -> bytes:
    """A token by its name in the API, where those that are no valid UTF-8 are written as bytes."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name):
        return bytes.fromhex(name[len("bytes:"):].replace("\\x", ""))
    return name.encode()
