"""Both clients against a real moe-serve on the demo."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from moe_serve import Server

from engine import DEMO
from scion.client import BaseClient, Client, GrpcClient, ScionError

PROMPTS = {"zh": "如果文件不存在，", "en": "The king said", "cpp": "#include <vector>\n", "python": "def test_sum(self):\n"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(DEMO, "--pack-dir", "none") as running:
        yield running


@pytest.fixture(scope="module")
def over_http(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def over_grpc(server: Server) -> Iterator[GrpcClient]:
    with grpc.insecure_channel(server.grpc, [("grpc.enable_http_proxy", 0)]) as channel:
        yield GrpcClient(channel=channel)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, over_http: Client, over_grpc: GrpcClient) -> BaseClient:
    return over_http if request.param == "http" else over_grpc


def refused(call: Callable[[], object]) -> ScionError:
    with pytest.raises(ScionError) as caught:
        call()
    assert str(caught.value) == f"{caught.value.status}: {caught.value.message}"
    return caught.value


@pytest.mark.parametrize("domain", PROMPTS)
def test_the_same_seed_gives_the_same_answer_over_both(over_http: Client, over_grpc: GrpcClient, domain: str) -> None:
    options = dict(domain=domain, max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=2**64 - 7, logprobs=3,
                   logit_bias={5: -2.5}, ignore_eos=True)
    a, b = (client.generate(PROMPTS[domain], **options) for client in (over_http, over_grpc))
    assert a.text == b.text and len(a.text) > 20
    assert a.finish_reason == b.finish_reason == "length"
    assert a.usage.completion_tokens == b.usage.completion_tokens == 40
    assert a.usage.prompt_tokens == b.usage.prompt_tokens == len(over_http.tokenize(PROMPTS[domain], add_special=True))
    assert [t.id for t in a.tokens] == [t.id for t in b.tokens] and len(a.tokens) == 40
    for mine, theirs in zip(a.tokens, b.tokens):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-6)
        assert [top.token for top in mine.top_logprobs] == [top.token for top in theirs.top_logprobs]
        assert len(mine.top_logprobs) == 3
    assert over_http.generate(PROMPTS[domain], **{**options, "seed": 1}).text != a.text


def test_a_stream_is_the_answer_in_pieces(client: BaseClient) -> None:
    # Long enough for several pieces: the server sends what has come together since its last one.
    whole = client.generate("The king", domain="en", max_tokens=200, temperature=0)
    with client.stream("The king", domain="en", max_tokens=200, temperature=0) as stream:
        chunks = list(stream)
    assert len(whole.tokens) > 100
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    assert all(token.logprob is None for token in whole.tokens)


def test_stop_strings_and_token_ids(client: BaseClient) -> None:
    text = client.generate("The king", domain="en", max_tokens=30, temperature=0).text
    answer = client.generate("The king", domain="en", max_tokens=30, temperature=0, stop=[text[8:12]])
    assert (answer.text, answer.finish_reason) == (text[:text.index(text[8:12])], "stop")
    ids = client.tokenize("The king", add_special=True)
    assert client.generate(ids, model="demo@en", max_tokens=30, temperature=0).text == text


def test_a_score_is_the_sum_of_what_generation_gave(client: BaseClient) -> None:
    prompt = client.tokenize("The king said", add_special=True)
    answer = client.generate(prompt, domain="en", max_tokens=20, temperature=0, logprobs=0, ignore_eos=True)
    ids = prompt + [token.id for token in answer.tokens]
    score = client.score(ids, domain="en")
    assert (list(score.token_ids), score.domain, len(score.logprobs)) == (ids, "en", len(ids) - 1)
    assert score.logprobs[len(prompt) - 1:] == pytest.approx([token.logprob for token in answer.tokens], abs=1e-6)
    assert score.total_logprob == pytest.approx(sum(score.logprobs), rel=1e-6)
    assert client.score("The king said", domain="cpp").total_logprob < client.score("The king said").total_logprob


def test_domains_and_what_they_have_done(client: BaseClient) -> None:
    before = client.domains()
    assert (before.model, before.default_domain, before.names) == ("demo", "en", ["zh", "en", "cpp", "python"])
    client.generate("a", domain="cpp", max_tokens=3, ignore_eos=True)
    cpp, was = client.domains().domains[2], before.domains[2]
    assert (cpp.num_experts, cpp.requests, cpp.generated_tokens) == (4, was.requests + 1, was.generated_tokens + 3)
    assert cpp.weight_bytes > 1 << 20


def test_both_know_the_same_domains(over_http: Client, over_grpc: GrpcClient) -> None:
    assert over_http.domains() == over_grpc.domains()


@pytest.mark.parametrize("text", ["", "hello  world\r\n", "中文，标点。\U0001F600"])
def test_detokenize_is_the_inverse_of_tokenize(client: BaseClient, text: str) -> None:
    assert client.detokenize(client.tokenize(text)).decode() == text
    bos = client.tokenize("<|endoftext|>", parse_special=True)
    if len(bos) == 1:
        assert client.detokenize(bos, skip_special=True) == b""


def test_a_token_may_be_half_a_character(client: BaseClient) -> None:
    ids = client.tokenize("\U0001F600")
    assert len(ids) > 1
    half = client.detokenize(ids[:1])
    assert "\U0001F600".encode().startswith(half) and half


def test_refusals_have_a_status_and_the_servers_words(client: BaseClient) -> None:
    for call in (lambda: client.generate("a", domain="fr"), lambda: client.score("a", domain="fr"),
                 lambda: list(client.stream("a", domain="fr"))):
        error = refused(call)
        assert error.status == "NOT_FOUND"
        assert "'fr'" in error.message and "zh, en, cpp, python" in error.message
    assert refused(lambda: client.generate("a", temperature=3)).status == "INVALID_ARGUMENT"
    assert refused(lambda: client.generate("a " * 300)).status == "INVALID_ARGUMENT"
    assert refused(lambda: client.score([1, 10**6])).status == "INVALID_ARGUMENT"
    assert refused(lambda: client.detokenize([10**6])).status == "INVALID_ARGUMENT"
    assert "domain" in refused(lambda: client.generate("a", domain="en", model="demo@cpp")).message


def make(kind: str, address: str) -> BaseClient:
    return Client(f"http://{address}") if kind == "http" else GrpcClient(address)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_no_server_is_unavailable(kind: str) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        with make(kind, f"127.0.0.1:{taken.getsockname()[1]}") as client:
            for call in (client.domains, lambda: client.generate("a"), lambda: client.score("a")):
                assert refused(call).status == "UNAVAILABLE"


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_server_that_says_nothing_is_left_at_the_deadline(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with make(kind, "127.0.0.1:%d" % silent.getsockname()[1]) as client:
            for call in (lambda: client.domains(timeout=0.3), lambda: client.generate("a", timeout=0.3)):
                start = time.monotonic()
                assert refused(call).status in ("DEADLINE_EXCEEDED", "UNAVAILABLE" if kind == "grpc" else "")
                assert 0.2 < time.monotonic() - start < 5


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    """The HTTP client, before a server that goes away in the middle of a stream."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b'data: {"choices": [{"text": "ab", "logprobs": null, "finish_reason": null, "token_ids": [1]}]}\n\n'
    error = b'data: {"error": {"message": "no room", "type": "rate_limit_error"}}\n\n'
    chunk = b"%x\r\n%s\r\n" % (len(event), event)
    cases = [(chunk, "UNAVAILABLE"), (chunk + b"0\r\n\r\n", "UNAVAILABLE"),
             (b"%x\r\n%s\r\n" % (len(error), error), "RESOURCE_EXHAUSTED")]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            for body, _ in cases:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(head + body)
        thread = threading.Thread(target=serve)
        thread.start()
        client = Client("http://127.0.0.1:%d" % listener.getsockname()[1])
        for body, status in cases:
            assert refused(lambda: client.generate("a")).status == status, body
        thread.join()


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Whose streams last long enough to be left: the demo with a context of 8,192 tokens."""
    import json
    import shutil

    directory = tmp_path_factory.mktemp("long") / "demo"
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("scion.lock.json", "eval", ".scion*"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    with Server(directory, "--pack-dir", "none") as running:
        yield running


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_leaving_a_stream_frees_its_request(long_server: Server, kind: str) -> None:
    with make(kind, long_server.http if kind == "http" else long_server.grpc) as client:
        with client.stream("a", max_tokens=8000, ignore_eos=True) as stream:
            next(stream)
            assert long_server.metrics()["scion_requests_running"] == 1
        long_server.wait_until_idle(5)
        assert list(stream) == []

        # Also from another thread, while this one waits for the next piece.
        for delay in (0.2, *(0.001 * i for i in range(20))):
            stream = client.stream("a", max_tokens=8000, ignore_eos=True)
            next(stream)
            threading.Timer(delay, stream.close).start()
            pieces = sum(1 for _ in stream)
            assert pieces < 7900 and (delay < 0.2 or pieces > 0)
        long_server.wait_until_idle(5)

        # And a deadline does the same.
        assert refused(lambda: client.generate("a", max_tokens=8000, ignore_eos=True, timeout=0.3)).status == \
            "DEADLINE_EXCEEDED"
        long_server.wait_until_idle(5)
