"""A GGUF file is served like a directory: its own tokenizer, its own logits."""

import json
import math
import struct

import grpc
import pytest
from openai import OpenAI

from moe_serve import ROOT, Server

GOLDEN = ROOT / "tests/golden/gguf"


def golden_tensors(path):
    """ids and logits (one list a row) of a golden file."""
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + length])

    def values(name, code):
        begin, end = header[name]["data_offsets"]
        return list(struct.unpack(f"<{(end - begin) // 4}{code}", data[8 + length + begin:8 + length + end]))

    ids, logits = values("default.ids", "i"), values("default.logits", "f")
    vocab = len(logits) // len(ids)
    return ids, [logits[at:at + vocab] for at in range(0, len(logits), vocab)]


def log_softmax(row, index):
    largest = max(row)
    return row[index] - largest - math.log(sum(math.exp(value - largest) for value in row))


@pytest.fixture(scope="module", params=["llama", "llama_experts", "qwen3moe"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def gguf_server(name):
    with Server(GOLDEN / f"{name}.gguf", "--weights", "fp32") as running:
        yield running


def test_score_is_that_of_transformers(gguf_server, name, api):
    ids, logits = golden_tensors(GOLDEN / f"{name}.golden.safetensors")
    with grpc.insecure_channel(gguf_server.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = api.rpc.InferenceStub(channel)
        answer = stub.Score(api.pb.ScoreRequest(token_ids=api.pb.TokenIds(ids=ids)))
    got = list(answer.logprobs)
    want = [log_softmax(logits[at], ids[at + 1]) for at in range(len(ids) - 1)]
    assert got == pytest.approx(want, abs=2e-3)


def test_text_goes_through_the_files_own_tokenizer(gguf_server, name):
    client = OpenAI(base_url=f"http://{gguf_server.http}/v1", api_key="none")
    assert [model.id for model in client.models.list().data][0] == name
    answer = client.completions.create(model=name, prompt="hello world", max_tokens=3, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert answer.usage.prompt_tokens == 2  # the file's merges make two tokens of eleven bytes
    assert answer.usage.completion_tokens == 3
