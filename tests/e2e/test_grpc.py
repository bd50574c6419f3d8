"""A Python gRPC client generated from proto/, health and reflection, against moe-serve."""

import json
import struct
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PROMPT = "The first line of the file"


@pytest.fixture(scope="module")
def generate(stub, api):
    """generate(**request) -> (text, tokens, finish)."""

    def call(metadata=None, timeout=60, greedy=True, **request):
        if greedy and "sampling" not in request:
            request["sampling"] = api.pb.Sampling(temperature=0)
        if "text" not in request and "token_ids" not in request:
            request["text"] = PROMPT
        messages = list(stub.Generate(api.pb.GenerateRequest(**{"max_tokens": 16, "ignore_eos": True, **request}),
                                      metadata=metadata, timeout=timeout))
        assert [m.HasField("finish") for m in messages] == [False] * (len(messages) - 1) + [True]
        tokens = [token for message in messages for token in message.tokens]
        return "".join(m.text for m in messages), tokens, messages[-1].finish

    return call


def expect(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code, caught.value.details()
    return caught.value.details()


def bits(values):
    return [struct.pack("<f", value) for value in values]


def test_generate_streams_text_tokens_and_one_finish(generate, api, stub):
    text, tokens, finish = generate(logprobs=2)
    assert finish.reason == api.pb.Finish.LENGTH
    assert finish.usage.completion_tokens == len(tokens) == 16
    ids = stub.Tokenize(api.pb.TokenizeRequest(text=PROMPT, add_special=True)).token_ids
    assert finish.usage.prompt_tokens == len(ids)
    detokenized = stub.Detokenize(api.pb.DetokenizeRequest(token_ids=[t.id for t in tokens], skip_special=True)).text
    assert detokenized.decode(errors="replace").startswith(text.rstrip("\ufffd"))
    for token in tokens:
        assert len(token.top_logprobs) == 2
        assert token.id == token.top_logprobs[0].token_id
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_both_transports_give_the_same_text(generate, client, model):
    over_http = client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=0,
                                          extra_body={"ignore_eos": True})
    assert generate()[0] == over_http.choices[0].text


def test_token_ids_are_the_text_they_stand_for(generate, api, stub):
    ids = stub.Tokenize(api.pb.TokenizeRequest(text=PROMPT, add_special=True)).token_ids
    assert generate(token_ids=api.pb.TokenIds(ids=ids))[0] == generate()[0]


def test_a_seed_fixes_the_text(generate, api):
    def text(seed):
        return generate(sampling=api.pb.Sampling(temperature=1, seed=seed), max_tokens=32)[0]

    assert text(2**64 - 1) == text(2**64 - 1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_text_before_it(generate, api):
    text, _, _ = generate(max_tokens=40)
    stop = text[10:14]
    shorter, _, finish = generate(max_tokens=40, stop=[stop])
    assert shorter == text[:text.index(stop)]
    assert finish.reason == api.pb.Finish.STOP


def test_score_gives_the_bits_that_generate_gave(generate, stub, api, domains):
    """Decode, one token at a time, and prefill of the whole are the same function, bit for bit."""
    prompt = list(stub.Tokenize(api.pb.TokenizeRequest(text=PROMPT, add_special=True)).token_ids)
    for domain in domains:
        _, tokens, _ = generate(domain=domain, token_ids=api.pb.TokenIds(ids=prompt), logprobs=0, max_tokens=48)
        ids = prompt + [token.id for token in tokens]
        score = stub.Score(api.pb.ScoreRequest(domain=domain, token_ids=api.pb.TokenIds(ids=ids)))
        assert list(score.token_ids) == ids
        assert score.domain == domain
        assert len(score.logprobs) == len(ids) - 1
        assert bits(score.logprobs[len(prompt) - 1:]) == bits(token.logprob for token in tokens)
        assert score.total_logprob == pytest.approx(sum(score.logprobs), rel=1e-6)


def test_score_of_text_scores_its_tokens(stub, api):
    ids = list(stub.Tokenize(api.pb.TokenizeRequest(text=PROMPT, add_special=True)).token_ids)
    by_text = stub.Score(api.pb.ScoreRequest(text=PROMPT))
    by_ids = stub.Score(api.pb.ScoreRequest(token_ids=api.pb.TokenIds(ids=ids)))
    assert by_text == by_ids


TEXTS = ["", "hello world", "  two  spaces\n\ttabs\r\n", "中文，标点。", "emoji \U0001F600 e\u0301 \u200d", "#include <vector>\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_detokenize_is_the_inverse_of_tokenize(stub, api, text):
    ids = stub.Tokenize(api.pb.TokenizeRequest(text=text)).token_ids
    assert stub.Detokenize(api.pb.DetokenizeRequest(token_ids=ids)).text.decode() == text


def test_special_tokens_are_added_as_the_tokenizers_files_say_and_never_parsed_unasked(stub, api, demo):
    def ids(text, **options):
        return list(stub.Tokenize(api.pb.TokenizeRequest(text=text, **options)).token_ids)

    bos = json.loads((demo / "tokenizer_config.json").read_text())["bos_token"]
    bos_id = json.loads((demo / "config.json").read_text())["bos_token_id"]
    adds_bos = json.loads((demo / "tokenizer.json").read_text())["post_processor"] is not None
    assert ids("a", add_special=True) == [bos_id] * adds_bos + ids("a")
    assert ids(bos, parse_special=True) == [bos_id]
    assert bos_id not in ids(bos)
    assert ids(bos + "a", add_special=True, parse_special=True) == [bos_id] + ids("a"), "BOS is never doubled"
    special = api.pb.DetokenizeRequest(token_ids=[bos_id] + ids("a"))
    assert stub.Detokenize(special).text.decode() == bos + "a"
    special.skip_special = True
    assert stub.Detokenize(special).text == b"a"


def test_list_domains(stub, api, generate):
    before = stub.ListDomains(api.pb.ListDomainsRequest())
    assert [d.name for d in before.domains] == ["zh", "en", "cpp", "python"]
    assert before.default_domain in [d.name for d in before.domains]
    assert all(d.num_experts == 4 and d.weight_bytes > 1 << 20 for d in before.domains)
    generate(domain="cpp", max_tokens=5)
    after = {d.name: d for d in stub.ListDomains(api.pb.ListDomainsRequest()).domains}
    was = {d.name: d for d in before.domains}
    assert after["cpp"].requests == was["cpp"].requests + 1
    assert after["cpp"].generated_tokens == was["cpp"].generated_tokens + 5
    assert after["zh"].requests == was["zh"].requests


def test_the_domain_in_metadata_is_the_domain_in_the_request(generate, model, domains):
    texts = set()
    for domain in domains:
        ways = {generate(domain=domain)[0], generate(metadata=[("x-scion-domain", domain)])[0],
                generate(model=f"{model}@{domain}")[0],
                generate(domain=domain, metadata=[("x-scion-domain", domain)])[0]}
        assert len(ways) == 1
        texts |= ways
    assert len(texts) == len(domains)


def test_errors_have_their_codes(generate, stub, api, domains, context_tokens):
    code = grpc.StatusCode
    details = expect(code.NOT_FOUND, lambda: generate(domain="nope"))
    assert "nope" in details and all(domain in details for domain in domains)
    expect(code.NOT_FOUND, lambda: generate(model="another"))
    expect(code.NOT_FOUND, lambda: stub.Score(api.pb.ScoreRequest(text="a", domain="nope")))
    details = expect(code.INVALID_ARGUMENT,
                     lambda: generate(domain=domains[0], metadata=[("x-scion-domain", domains[1])]))
    assert domains[0] in details and domains[1] in details
    details = expect(code.INVALID_ARGUMENT, lambda: generate(token_ids=api.pb.TokenIds(ids=[5] * (context_tokens + 7))))
    assert str(context_tokens) in details
    for options in ({"max_tokens": -1}, {"sampling": api.pb.Sampling(temperature=-1)}, {"logprobs": 1000},
                    {"sampling": api.pb.Sampling(top_p=2)}, {"token_ids": api.pb.TokenIds(ids=[-1])},
                    {"token_ids": api.pb.TokenIds(ids=[1 << 30])}, {"token_ids": api.pb.TokenIds()}):
        expect(code.INVALID_ARGUMENT, lambda: generate(**options))
    expect(code.INVALID_ARGUMENT, lambda: list(stub.Generate(api.pb.GenerateRequest())))
    expect(code.INVALID_ARGUMENT, lambda: stub.Score(api.pb.ScoreRequest()))
    expect(code.INVALID_ARGUMENT, lambda: stub.Detokenize(api.pb.DetokenizeRequest(token_ids=[-1])))
    generate()  # and the server goes on


def test_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "scion.v1.Inference"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == \
            health_pb2.HealthCheckResponse.SERVING
    expect(grpc.StatusCode.NOT_FOUND, lambda: health.Check(health_pb2.HealthCheckRequest(service="none")))


def test_reflection_describes_the_service(channel, api):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"scion.v1.Inference", "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("scion.v1.Inference")
    methods = [method.name for service in file.service for method in service.method]
    assert methods == [method.name for method in api.pb.DESCRIPTOR.services_by_name["Inference"].methods]


@pytest.fixture(scope="module")
def long_stub(long_server, api):
    with grpc.insecure_channel(long_server.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield api.rpc.InferenceStub(channel)


def long_request(api):
    return api.pb.GenerateRequest(text=PROMPT, ignore_eos=True)  # 8,192 tokens: over a second's work


def test_cancel_ends_the_work(long_server, long_stub, api):
    cancelled = long_server.metric("scion_engine_requests_cancelled_total")
    call = long_stub.Generate(long_request(api))
    next(iter(call))
    call.cancel()
    long_server.wait_for(lambda m: m["scion_engine_requests_cancelled_total"] == cancelled + 1, 1, "cancelled")
    long_server.wait_until_idle(1)
    assert call.code() == grpc.StatusCode.CANCELLED


def test_a_clients_deadline_ends_the_work(long_server, long_stub, api):
    received = []
    details = expect(grpc.StatusCode.DEADLINE_EXCEEDED,
                     lambda: received.extend(long_stub.Generate(long_request(api), timeout=0.3)))
    assert received and details
    long_server.wait_until_idle(1)
    assert sum(len(message.tokens) for message in received) < 8000


def test_many_threads_share_one_channel(generate):
    expected = generate()[0]
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(generate()[0])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 16
