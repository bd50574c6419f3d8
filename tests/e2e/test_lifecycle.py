"""How moe-serve starts, drains and ends, and how it says no."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import time

import grpc
import httpx
import openai
import pytest

from moe_serve import Server, bin_directory
from wire import GrpcStream, HttpStream, split_address


def moe_serve(*arguments, timeout=60):
    return subprocess.run([str(bin_directory() / "moe-serve"), *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout)


def stream_of(server, tokens=6000, **body):
    return HttpStream(server, prompt=[300, 301, 302], max_tokens=tokens, **body)


def get(server, path):
    return httpx.get(server.url + path, timeout=10, trust_env=False)


async def wait_for_status(server, path, status, seconds):
    deadline = time.monotonic() + seconds
    while (await asyncio.to_thread(get, server, path)).status_code != status:
        assert time.monotonic() < deadline, f"{path} is not {status} after {seconds} s"
        await asyncio.sleep(0.01)


def test_a_server_is_healthy_and_ready(server):
    assert get(server, "/healthz").status_code == 200
    assert get(server, "/readyz").status_code == 200
    assert server.metric("scion_ready") == 1


def test_port_zero_prints_two_free_ports(server):
    ports = [split_address(address)[1] for address in (server.http, server.grpc)]
    assert all(1024 <= port < 65536 for port in ports) and ports[0] != ports[1]
    assert all(split_address(address)[0] == "127.0.0.1" for address in (server.http, server.grpc)), "loopback by default"


def test_sigterm_drains(long_demo, api):
    server = Server(long_demo)
    try:
        async def run():
            http = await stream_of(server).open()
            rpc = await GrpcStream(server, api, token_ids=api.pb.TokenIds(ids=[300, 301]), max_tokens=6000).open()
            http_events, rpc_events = http.events(), rpc.events()
            await anext(http_events)
            await anext(rpc_events)

            async def rest(events):
                async for _ in events:
                    pass

            reading = asyncio.gather(rest(http_events), rest(rpc_events))
            server.signal(signal.SIGTERM)
            await wait_for_status(server, "/readyz", 503, 5)
            assert (await asyncio.to_thread(get, server, "/healthz")).status_code == 200
            assert not reading.done(), "the running requests are still running"
            refused = await asyncio.to_thread(httpx.post, f"{server.url}/v1/completions", timeout=10, trust_env=False,
                                              json={"prompt": "a", "max_tokens": 1})
            assert refused.status_code == 503
            assert refused.json()["error"]["message"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (await GrpcStream(server, api, text="a", max_tokens=1).open()).read_all()
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            await reading
            http.assert_ended_once()
            rpc.assert_ended_once()
            assert rpc.tokens == 6000

        asyncio.run(run())
        assert server.wait(20) == 0
    finally:
        server.kill()


def test_the_drain_timeout_bounds_the_drain(long_demo):
    server = Server(long_demo, "--drain-timeout", 1)
    try:
        async def run():
            streams = [await stream_of(server, 8000).open() for _ in range(32)]  # many seconds of work
            reading = [asyncio.ensure_future(stream.read_all()) for stream in streams]
            while not all(stream.event_times for stream in streams):
                await asyncio.sleep(0.01)
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait, 15)
            await asyncio.gather(*reading, return_exceptions=True)
            assert not any(stream.finish_reasons for stream in streams), "none came to its own end"
            return time.monotonic() - started

        assert 0.9 < asyncio.run(run()) < 5
    finally:
        server.kill()


def test_a_second_signal_ends_at_once(long_demo):
    server = Server(long_demo)
    try:
        async def run():
            streams = [await stream_of(server, 8000).open() for _ in range(32)]  # many seconds of work
            reading = [asyncio.ensure_future(stream.read_all()) for stream in streams]
            while not all(stream.event_times for stream in streams):
                await asyncio.sleep(0.01)
            server.signal(signal.SIGTERM)
            await wait_for_status(server, "/readyz", 503, 5)
            server.signal(signal.SIGTERM)
            started = time.monotonic()
            await asyncio.to_thread(server.wait, 15)
            await asyncio.gather(*reading, return_exceptions=True)
            assert not any(stream.finish_reasons for stream in streams), "none came to its own end"
            return time.monotonic() - started

        assert asyncio.run(run()) < 2
    finally:
        server.kill()


@pytest.mark.parametrize("which", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_explained(demo, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[which]
        result = moe_serve(demo, which, port, other, 0)
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "in use" in result.stderr
    assert "ready" not in result.stdout


def test_ipv6_loopback(demo, api):
    with Server(demo, "--host", "::1") as server:
        assert server.http.startswith("[::1]:") and server.grpc.startswith("[::1]:")
        server.assert_answers()
        with grpc.insecure_channel(server.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert api.rpc.InferenceStub(channel).ListDomains(api.pb.ListDomainsRequest()).domains


def test_a_bad_model_directory_is_explained(demo, tmp_path):
    missing = moe_serve(tmp_path / "none")
    assert missing.returncode == 1 and str(tmp_path / "none") in missing.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (result := moe_serve(empty)).returncode == 1 and str(empty) in result.stderr
    damaged = tmp_path / "damaged"
    shutil.copytree(demo, damaged)
    trunk = damaged / "trunk.safetensors"
    trunk.write_bytes(trunk.read_bytes()[:1000])
    result = moe_serve(damaged)
    assert result.returncode == 1 and "trunk.safetensors" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--no-such-option"], [], ["MODEL", "--threads", "many"],
                                       ["MODEL", "--weights", "fp3"]])
def test_wrong_use_exits_with_two(arguments):
    result = moe_serve(*arguments)
    assert result.returncode == 2
    assert result.stderr and not result.stdout


def test_help_has_an_example_and_version_a_number():
    assert re.search(r"moe-serve \S+", moe_serve("--help").stdout)
    assert re.match(r"moe-serve \d+\.\d+", moe_serve("--version").stdout)


def test_an_arrival_during_8_decodes_gets_its_first_token_before_any_of_them_ends(long_server, api):
    async def run():
        channel = grpc.aio.insecure_channel(long_server.grpc, options=[("grpc.enable_http_proxy", 0)])
        decodes = [await GrpcStream(long_server, api, channel, token_ids=api.pb.TokenIds(ids=[300 + i] * 5),
                                    max_tokens=2000).open() for i in range(8)]
        reading = [asyncio.ensure_future(stream.read_all()) for stream in decodes]
        while not all(len(stream.event_times) >= 3 for stream in decodes):
            await asyncio.sleep(0.005)
        arrival = await GrpcStream(long_server, api, channel, max_tokens=8,
                                   token_ids=api.pb.TokenIds(ids=[400 + i for i in range(700)])).open()
        await arrival.read_all()
        assert arrival.event_times[0] > max(stream.event_times[0] for stream in decodes)
        await asyncio.gather(*reading)
        assert arrival.event_times[0] < min(stream.event_times[-1] for stream in decodes)
        assert all(stream.tokens == 2000 for stream in decodes)
        await channel.close()

    asyncio.run(run())


def test_a_full_queue_is_said_with_a_time_to_come_back(long_demo, api):
    with Server(long_demo, "--max-running", 1, "--max-waiting", 1) as server:
        async def run():
            running = await stream_of(server, 8000).open()
            events = running.events()
            await anext(events)
            waiting = await stream_of(server, 5).open()
            await asyncio.to_thread(server.wait_for, lambda m: m["scion_requests_waiting"] == 1, 5, "one waits")

            def ask():
                with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0,
                                   http_client=httpx.Client(trust_env=False)) as client:
                    client.completions.create(model="", prompt="a", max_tokens=1)

            with pytest.raises(openai.RateLimitError) as caught:
                await asyncio.to_thread(ask)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await (await GrpcStream(server, api, text="a", max_tokens=1).open()).read_all()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            running.vanish("fin")  # makes room for the one that waits
            await waiting.read_all()
            waiting.assert_ended_once()

        asyncio.run(run())
        server.assert_answers()


def test_a_queue_of_tokens_is_bounded_too(long_demo):
    """A request that could never fit the KV cache is refused, not queued for ever."""
    with Server(long_demo, "--kv-cache-mb", 4) as server:
        answer = httpx.post(f"{server.url}/v1/completions", timeout=30, trust_env=False,
                            json={"prompt": [300] * 8000, "max_tokens": 1})
        assert answer.status_code in (400, 429), answer.text
        assert answer.json()["error"]["message"]
        server.assert_answers()


def test_the_servers_request_timeout_ends_a_request(long_demo, api):
    with Server(long_demo, "--request-timeout", 0.3) as server:
        body = {"prompt": [300] * 5, "ignore_eos": True, "temperature": 0}  # to the end of the context: over a second
        answer = httpx.post(f"{server.url}/v1/completions", timeout=30, trust_env=False, json=body)
        assert answer.status_code == 504, answer.text

        async def run():
            http = await HttpStream(server, **body).open()
            await http.read_all()
            assert len(http.errors) == 1 and http.finish_reasons == [], "a stream says why it ends"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (await GrpcStream(server, api, token_ids=api.pb.TokenIds(ids=[300] * 5)).open()).read_all()
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

        asyncio.run(run())
        server.wait_until_idle(1)
        server.assert_answers()


@pytest.mark.parametrize("request_bytes,status", [
    (b"GARBAGE\r\n\r\n", 400),
    (b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    (b"GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{", 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]", 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431),
])
def test_what_a_stranger_may_send_is_answered_and_does_no_harm(server, request_bytes, status):
    with socket.create_connection(split_address(server.http), timeout=10) as connection:
        try:
            connection.sendall(request_bytes)
        except OSError:
            pass  # refused before it was read
        head = connection.makefile("rb").readline().decode()
    assert int(head.split()[1]) == status
    server.assert_answers()


def test_a_request_that_begins_before_the_last_answer_ended_is_read_whole(server):
    """Its header comes while the answer before is written, its body only afterwards."""

    def answer(lines):
        status = int(lines.readline().split()[1])
        length = 0
        while (line := lines.readline().lower()) != b"\r\n":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, json.loads(lines.read(length))

    body = json.dumps({"prompt": "a", "max_tokens": 200, "temperature": 0, "ignore_eos": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(split_address(server.http), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = connection.makefile("rb")
        connection.sendall(head + body)
        connection.sendall(head)
        first = answer(lines)
        connection.sendall(body)
        second = answer(lines)
    assert (first[0], second[0]) == (200, 200), second
    assert first[1]["choices"] == second[1]["choices"]


def test_metrics_tell_the_load_per_domain_layer_and_expert(server):
    metrics = server.metrics()
    experts = {name for name in metrics if name.startswith("scion_expert_tokens_total{")}
    assert len(experts) == 4 * 3 * 4  # domains, sparse layers, experts
    before = {name: metrics[name] for name in experts}
    httpx.post(f"{server.url}/v1/completions", timeout=30, trust_env=False,
               json={"prompt": list(range(300, 340)), "max_tokens": 1, "domain": "en"})
    after = server.metrics()
    changed = {name: after[name] - before[name] for name in experts if after[name] != before[name]}
    assert changed and all('domain="en"' in name for name in changed)
    by_layer = {}
    for name, tokens in changed.items():
        layer = re.search(r'layer="(\d+)"', name).group(1)
        by_layer[layer] = by_layer.get(layer, 0) + tokens
    assert by_layer.pop(max(by_layer, key=int)) == 1, "in the last layer, only the token whose logits are wanted"
    assert set(by_layer.values()) == {40}, "every prompt token visits one expert in every other sparse layer"


def test_sigint_ends_an_idle_server_cleanly(demo):
    server = Server(demo)
    server.signal(signal.SIGINT)
    assert server.wait(10) == 0
