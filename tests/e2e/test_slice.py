"""The cut of a domain answers with the bits of the whole, over the wire."""

import json
import struct
import subprocess

import grpc
import pytest

from moe_serve import ROOT, Server, bin_directory

DOMAIN = "cpp"


@pytest.fixture(scope="module")
def cut(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("cut") / DOMAIN
    subprocess.run([bin_directory() / "moe-extract", "slice", demo, "--domain", DOMAIN, "-o", out], check=True)
    return out


@pytest.fixture(scope="module")
def stubs(server, cut, api):
    """Of the whole and of the cut. The cut runs with other threads and chunks, which must not matter."""
    options = [("grpc.enable_http_proxy", 0)]
    with Server(cut, "--threads", 1, "--prefill-chunk", 37) as cut_server:
        with grpc.insecure_channel(server.grpc, options=options) as whole_channel, \
                grpc.insecure_channel(cut_server.grpc, options=options) as cut_channel:
            yield api.rpc.InferenceStub(whole_channel), api.rpc.InferenceStub(cut_channel)


def prompts(stub, api, context_tokens):
    """Token ids of pieces of this repository's own sources, 2 to 200 tokens long, and of random bytes."""
    pieces = []
    for path in sorted((ROOT / "engine").rglob("*.h"))[:12]:
        text = path.read_text()
        ids = list(stub.Tokenize(api.pb.TokenizeRequest(text=text, add_special=True)).token_ids)
        pieces += [ids[:2 + 17 * len(pieces) % 200], ids[-200:]]
    state = 1
    for length in (2, 33, 200):
        ids = []
        for _ in range(length):
            state = state * 6364136223846793005 % 2**64 + 1442695040888963407
            ids.append((state >> 33) % 8192)
        pieces.append(ids)
    return [ids[:context_tokens] for ids in pieces]


def test_the_cut_lists_only_its_domain(stubs, api):
    answer = stubs[1].ListDomains(api.pb.ListDomainsRequest())
    assert [domain.name for domain in answer.domains] == [DOMAIN]
    assert answer.default_domain == DOMAIN


def test_score_has_the_same_bits_as_the_whole(stubs, api, context_tokens):
    whole, cut = stubs
    compared = 0
    differ_elsewhere = 0
    for ids in prompts(whole, api, context_tokens):
        request = api.pb.ScoreRequest(domain=DOMAIN, token_ids=api.pb.TokenIds(ids=ids))
        logprobs = [struct.pack(f"<{len(ids) - 1}f", *stub.Score(request).logprobs) for stub in (whole, cut)]
        assert logprobs[0] == logprobs[1]
        compared += len(ids) - 1
        request.domain = "en"
        other = whole.Score(request).logprobs
        differ_elsewhere += struct.pack(f"<{len(ids) - 1}f", *other) != logprobs[0]
    assert compared > 1000
    assert differ_elsewhere > 20, "the comparison can tell domains apart"


def test_greedy_text_is_the_same(stubs, api):
    for prompt in ("#include <", "int main() {\n", "template <typename T>", "中文", "for (int i = 0;"):
        texts = []
        for stub, domain in zip(stubs, (DOMAIN, "")):  # the cut's default is its only domain
            request = api.pb.GenerateRequest(text=prompt, domain=domain, max_tokens=64, ignore_eos=True,
                                             sampling=api.pb.Sampling(temperature=0))
            texts.append("".join(message.text for message in stub.Generate(request)))
        assert texts[0] == texts[1]
        assert texts[0]


def test_the_cut_knows_no_other_domain(stubs, api):
    with pytest.raises(grpc.RpcError) as caught:
        stubs[1].Score(api.pb.ScoreRequest(domain="en", text="a"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_cut_is_smaller_and_its_config_names_one_domain(demo, cut):
    def size(directory):
        return sum(path.stat().st_size for path in directory.rglob("*.safetensors"))

    assert size(cut) < size(demo) / 2
    assert [d["name"] for d in json.loads((cut / "config.json").read_text())["domains"]] == [DOMAIN]
