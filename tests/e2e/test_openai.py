"""The Python openai package, unchanged, against moe-serve."""

import openai
import pytest

PROMPT = "The first line of the file"


def complete(client, model, prompt=PROMPT, **options):
    return client.completions.create(**{"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, **options})


def chat(client, model, **options):
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(
        **{"model": model, "messages": messages, "max_tokens": 16, "temperature": 0, **options})


IGNORE_EOS = {"extra_body": {"ignore_eos": True}}


def test_models_list_names_the_model_and_each_name_can_be_asked(client, model, domains):
    names = [entry.id for entry in client.models.list().data]
    assert names[0] == model
    for name in names:
        assert complete(client, name, max_tokens=1).choices[0].finish_reason in ("length", "stop")
    assert client.models.retrieve(model).id == model


def test_completion(client, model):
    answer = complete(client, model, **IGNORE_EOS)
    assert answer.object == "text_completion"
    assert len(answer.choices) == 1
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens > 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def test_a_streamed_completion_is_the_same_text_with_one_end(client, model):
    whole = complete(client, model, **IGNORE_EOS)
    chunks = list(complete(client, model, stream=True, stream_options={"include_usage": True}, **IGNORE_EOS))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_streamed_only_if_asked_for(client, model):
    chunks = list(complete(client, model, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_chat(client, model):
    answer = chat(client, model, **IGNORE_EOS)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16


def test_a_streamed_chat_is_the_same_text_with_one_end(client, model):
    whole = chat(client, model, **IGNORE_EOS)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}, **IGNORE_EOS))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage == whole.usage


def test_a_chat_accepts_max_completion_tokens_and_content_parts(client, model):
    whole = chat(client, model, **IGNORE_EOS)
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    answer = client.chat.completions.create(model=model, messages=parts, max_completion_tokens=16, temperature=0,
                                            **IGNORE_EOS)
    assert answer.choices[0].message.content == whole.choices[0].message.content


def test_a_prompt_of_token_ids_is_the_prompt_they_stand_for(client, model, stub, api):
    ids = stub.Tokenize(api.pb.TokenizeRequest(text=PROMPT, add_special=True)).token_ids
    by_text = complete(client, model)
    by_ids = complete(client, model, prompt=list(ids))
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage.prompt_tokens == by_text.usage.prompt_tokens == len(ids)


def test_a_prompt_that_was_asked_before_is_not_computed_again_and_says_the_same(client, model):
    ids = [20 + i % 50 for i in range(100)]
    first, second = (complete(client, model, prompt=ids, logprobs=1, **IGNORE_EOS) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens == 96
    assert second.choices[0].text == first.choices[0].text
    assert second.choices[0].logprobs.token_logprobs == first.choices[0].logprobs.token_logprobs
    different = complete(client, model, prompt=[19] + ids[1:], **IGNORE_EOS)
    assert different.usage.prompt_tokens_details.cached_tokens == 0


def test_completion_logprobs(client, model):
    answer = complete(client, model, logprobs=3, **IGNORE_EOS).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 16
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0
        assert logprob == max(top.values()), "a greedy token is the likeliest"
        assert token in top
    streamed = list(complete(client, model, logprobs=3, stream=True, **IGNORE_EOS))
    together = [v for c in streamed if c.choices and c.choices[0].logprobs for v in c.choices[0].logprobs.token_logprobs]
    assert together == logprobs.token_logprobs


def test_chat_logprobs(client, model):
    content = chat(client, model, logprobs=True, top_logprobs=2, **IGNORE_EOS).choices[0].logprobs.content
    assert len(content) == 16
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_stop_strings_end_the_text_before_them(client, model):
    text = complete(client, model, max_tokens=40, **IGNORE_EOS).choices[0].text
    stop = text[10:14]
    expected = text[:text.index(stop)]
    for stops in (stop, [stop], ["\0 never", stop]):
        answer = complete(client, model, max_tokens=40, stop=stops, **IGNORE_EOS).choices[0]
        assert (answer.text, answer.finish_reason) == (expected, "stop")
    chunks = list(complete(client, model, max_tokens=40, stop=stop, stream=True, **IGNORE_EOS))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client, model):
    def text(seed):
        return complete(client, model, temperature=1, seed=seed, max_tokens=32, **IGNORE_EOS).choices[0].text

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_domain_may_be_named_in_three_ways(client, model, domains):
    texts = {}
    for domain in domains:
        ways = [complete(client, f"{model}@{domain}"), complete(client, model, extra_body={"domain": domain}),
                complete(client, model, extra_headers={"x-scion-domain": domain}),
                complete(client, f"{model}@{domain}", extra_body={"domain": domain},
                         extra_headers={"x-scion-domain": domain})]
        assert len({answer.choices[0].text for answer in ways}) == 1
        texts[domain] = ways[0].choices[0].text
    assert len(set(texts.values())) == len(domains), "each domain has its own text"


def test_a_chat_takes_the_domain_too(client, model, domains):
    texts = {chat(client, f"{model}@{domain}").choices[0].message.content for domain in domains}
    assert len(texts) == len(domains)


def test_without_a_domain_the_default_answers(client, model, stub, api):
    default = stub.ListDomains(api.pb.ListDomainsRequest()).default_domain
    assert complete(client, model).choices[0].text == complete(client, f"{model}@{default}").choices[0].text


def test_two_domains_in_one_request_are_refused(client, model, domains):
    first, second = domains[:2]
    for name, options in ((f"{model}@{first}", {"extra_body": {"domain": second}}),
                          (model, {"extra_body": {"domain": first}, "extra_headers": {"x-scion-domain": second}}),
                          (f"{model}@{first}", {"extra_headers": {"x-scion-domain": second}})):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, name, **options)
        assert first in caught.value.message and second in caught.value.message


def test_an_unknown_domain_is_not_found_and_the_error_lists_those_there_are(client, model, domains):
    for options in ({"model": f"{model}@nope"}, {"model": model, "extra_body": {"domain": "nope"}}):
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as caught:
                client.completions.create(prompt=PROMPT, stream=stream, **options)
            assert "nope" in caught.value.message
            assert all(domain in caught.value.message for domain in domains)


def test_an_unknown_model_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, "gpt-none")
    assert caught.value.code == "model_not_found"
    assert model in caught.value.message


def test_without_max_tokens_the_text_goes_to_the_end_of_the_context(client, model, context_tokens):
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, **IGNORE_EOS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == context_tokens
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": PROMPT}], **IGNORE_EOS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == context_tokens


def test_context_overflow_is_a_bad_request_with_both_numbers(client, model, context_tokens):
    too_long = context_tokens + 11
    for options in ({"prompt": [5] * too_long, "max_tokens": 1}, {"prompt": [5] * 11, "max_tokens": context_tokens}):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, model, **options)
        assert str(context_tokens) in caught.value.message
        assert str(too_long) in caught.value.message or str(too_long + 1) in caught.value.message
        assert caught.value.type == "invalid_request_error"


UNBUILT = {
    "n": (2, ("completions", "chat")),
    "best_of": (2, ("completions",)),
    "suffix": ("end", ("completions",)),
    "tools": ([{"type": "function", "function": {"name": "f", "parameters": {}}}], ("chat",)),
    "response_format": ({"type": "json_object"}, ("chat",)),
}


@pytest.mark.parametrize("parameter,endpoint",
                         [(name, endpoint) for name, (_, endpoints) in UNBUILT.items() for endpoint in endpoints])
def test_a_parameter_that_is_not_built_is_refused_by_name(client, model, parameter, endpoint):
    ask = complete if endpoint == "completions" else chat
    assert ask(client, model).choices, "the same request without it is answered"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, **{parameter: UNBUILT[parameter][0]})
    assert caught.value.param == parameter
    assert parameter in caught.value.message


def test_parameters_with_their_neutral_value_are_accepted(client, model):
    assert chat(client, model, n=1, response_format={"type": "text"}).choices
    assert complete(client, model, n=1).choices


@pytest.mark.parametrize("options,parameter", [
    ({"temperature": -1}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"max_tokens": -1}, "max_tokens"),
    ({"logprobs": 1000}, "logprobs"), ({"max_tokens": "many"}, "max_tokens"), ({"stream": "yes"}, "stream"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"), ({"stop": 7}, "stop"), ({"prompt": [99999999]}, "99999999"),
])
def test_a_bad_value_is_a_bad_request_that_says_which(client, model, options, parameter):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, model, **options)
    assert parameter in caught.value.message


def test_logit_bias_forbids_and_forces_tokens(client, model, stub, api):
    forced = stub.Tokenize(api.pb.TokenizeRequest(text="x")).token_ids[0]
    answer = complete(client, model, max_tokens=4, logit_bias={str(forced): 100}, **IGNORE_EOS)
    assert answer.choices[0].text == "xxxx"
