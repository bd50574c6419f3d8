"""A directory that `moe-extract quantize` wrote is served, and so is a domain cut out of it: with the bits of the whole,
and about as good as the model that it was made of."""

import math
import struct
import subprocess

import grpc
import pytest

from moe_serve import ROOT, Server, bin_directory

DOMAIN = "cpp"


def extract(*arguments):
    subprocess.run([bin_directory() / "moe-extract", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module", params=["q8_0", "q4_0"])
def block_type(request):
    return request.param


@pytest.fixture(scope="module")
def stubs(block_type, demo, tmp_path_factory, api):
    """Of the model, of its quantised copy, and of a domain of that copy."""
    directory = tmp_path_factory.mktemp(block_type)
    extract("quantize", demo, "--type", block_type, "-o", directory / "whole")
    extract("slice", directory / "whole", "--domain", DOMAIN, "-o", directory / DOMAIN)
    options = [("grpc.enable_http_proxy", 0)]
    with Server(demo) as plain, Server(directory / "whole") as whole, \
            Server(directory / DOMAIN, "--threads", 1, "--prefill-chunk", 37) as cut:
        channels = [grpc.insecure_channel(server.grpc, options=options) for server in (plain, whole, cut)]
        yield [api.rpc.InferenceStub(channel) for channel in channels]
        for channel in channels:
            channel.close()


def texts():
    return [path.read_text()[:500] for path in sorted((ROOT / "engine/base").glob("*.h"))[:8]]


def score(stub, api, text, domain=DOMAIN):
    logprobs = list(stub.Score(api.pb.ScoreRequest(domain=domain, text=text)).logprobs)
    assert len(logprobs) > 50
    return logprobs


def bits(logprobs):
    return struct.pack(f"<{len(logprobs)}f", *logprobs)


def test_the_cut_has_the_bits_of_the_quantised_whole(stubs, api):
    plain, whole, cut = stubs
    for text in texts():
        expected = bits(score(whole, api, text))
        assert bits(score(cut, api, text)) == expected
        assert bits(score(plain, api, text)) != expected, "the comparison can tell quantised weights from others"
        assert bits(score(whole, api, text, "en")) != expected, "and domains apart"


def test_perplexity_stays(stubs, api, block_type):
    plain, whole, _ = stubs
    loss = [-sum(sum(score(stub, api, text)) for text in texts()) / sum(len(score(plain, api, text)) for text in texts())
            for stub in (plain, whole)]
    ratio = math.exp(loss[1] - loss[0])
    assert abs(ratio - 1) < {"q8_0": 0.01, "q4_0": 0.15}[block_type]


def test_greedy_text_is_the_same(stubs, api):
    for prompt in ("#include <", "template <typename T>", "for (int i = 0;"):
        request = api.pb.GenerateRequest(text=prompt, domain=DOMAIN, max_tokens=48, ignore_eos=True,
                                         sampling=api.pb.Sampling(temperature=0))
        answers = ["".join(message.text for message in stub.Generate(request)) for stub in stubs[1:]]
        assert answers[0]
        assert answers[0] == answers[1]
