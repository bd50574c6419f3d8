// What a request may say, and how it is refused: domains, defaults, OpenAI bodies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/domain_choice.h"
#include "server/openai_request.h"
#include "server/request_error.h"
#include "server/sampling_defaults.h"

namespace scion {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelSpec Spec() {
  ModelSpec spec;
  spec.domains = {{.name = "en", .num_experts = 1}, {.name = "cpp", .num_experts = 1}};
  spec.default_domain = 0;
  return spec;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(DomainChoiceTest, WithoutAWishTheDefaultDomainAnswers) {
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "", {}), 0);
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "demo", {{.source = "domain", .domain = ""}}), 0);
}

TEST(DomainChoiceTest, EachOfThreePlacesMayNameTheDomain) {
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "demo@cpp", {}), 1);
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "demo", {{.source = "domain", .domain = "cpp"}}), 1);
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "", {{.source = "x-scion-domain", .domain = "cpp"}}), 1);
  EXPECT_EQ(*ChooseDomain(Spec(), "demo", "demo@cpp",
                          {{.source = "domain", .domain = "cpp"}, {.source = "x-scion-domain", .domain = "cpp"}}),
            1);
}

TEST(DomainChoiceTest, TwoPlacesThatDisagreeAreRefusedAndBothNamed) {
  for (const auto& status :
       {ChooseDomain(Spec(), "demo", "demo@en", {{.source = "domain", .domain = "cpp"}}).status(),
        ChooseDomain(Spec(), "demo", "",
                     {{.source = "domain", .domain = "en"}, {.source = "x-scion-domain", .domain = "cpp"}})
            .status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("'en'"), HasSubstr("'cpp'")));
  }
}

TEST(DomainChoiceTest, WhatIsNotThereIsNotFoundAndWhatIsThereIsListed) {
  const absl::Status domain = ChooseDomain(Spec(), "demo", "demo@fr", {}).status();
  EXPECT_EQ(domain.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(domain), AllOf(HasSubstr("'fr'"), HasSubstr("en, cpp")));
  const absl::Status model = ChooseDomain(Spec(), "demo", "gpt@en", {}).status();
  EXPECT_EQ(model.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrorCode(model), "model_not_found");
  EXPECT_THAT(Message(model), AllOf(HasSubstr("'gpt@en'"), HasSubstr("'demo'")));
}

TEST(DomainChoiceTest, AModelNameMayHoldAnAtSign) {
  EXPECT_EQ(*ChooseDomain(Spec(), "a@b", "a@b", {}), 0);
  EXPECT_EQ(*ChooseDomain(Spec(), "a@b", "a@b@cpp", {}), 1);
}

TEST(DomainChoiceTest, AThousandDomainsStillFitAMessage) {
  ModelSpec spec;
  for (int i = 0; i < 1000; ++i) spec.domains.push_back({.name = std::string(60, 'a') + std::to_string(i)});
  EXPECT_LT(Message(ChooseDomain(spec, "demo", "demo@none", {}).status()).size(), 5000u);
}

TEST(SamplingDefaultsTest, ComeFromTheModel) {
  const auto defaults = ParseSamplingDefaults(R"({"do_sample": true, "temperature": 0.25, "top_k": 40, "top_p": 0.5})");
  ASSERT_TRUE(defaults.ok());
  EXPECT_EQ(defaults->temperature, 0.25f);
  EXPECT_EQ(defaults->top_k, 40);
  EXPECT_EQ(defaults->top_p, 0.5f);
}

TEST(SamplingDefaultsTest, NoSamplingIsGreedy) {
  EXPECT_EQ(ParseSamplingDefaults(R"({"do_sample": false, "temperature": 0.8})")->temperature, 0);
}

TEST(SamplingDefaultsTest, WhatIsNotSaidIsThePlainDefault) {
  const auto defaults = ParseSamplingDefaults("{}");
  EXPECT_EQ(defaults->temperature, 1);
  EXPECT_EQ(defaults->top_k, 0);
  EXPECT_EQ(defaults->top_p, 1);
  EXPECT_EQ(LoadSamplingDefaults("/nowhere")->temperature, 1);
}

TEST(SamplingDefaultsTest, DamagedValuesAreNamed) {
  for (const auto& [json, name] : std::map<std::string, std::string>{{R"({"temperature": "hot"})", "temperature"},
                                                                     {R"({"temperature": -1})", "temperature"},
                                                                     {R"({"top_k": 1.5})", "top_k"},
                                                                     {R"({"top_k": -1})", "top_k"},
                                                                     {R"({"top_p": 0})", "top_p"},
                                                                     {R"({"do_sample": 1})", "do_sample"},
                                                                     {"[]", "object"},
                                                                     {"{", "generation_config.json"}}) {
    const absl::Status status = ParseSamplingDefaults(json).status();
    EXPECT_FALSE(status.ok()) << json;
    EXPECT_THAT(Message(status), HasSubstr(name)) << json;
  }
}

// ---- OpenAI ----

absl::StatusOr<OpenAiCall> Completion(const std::string& members) {
  return ParseOpenAiCall(OpenAiKind::kCompletion, absl::StrCat("{\"prompt\": \"p\"", members, "}"), "");
}
absl::StatusOr<OpenAiCall> Chat(const std::string& members) {
  return ParseOpenAiCall(OpenAiKind::kChat,
                         absl::StrCat(R"({"messages": [{"role": "user", "content": "c"}])", members, "}"), "");
}

TEST(OpenAiRequestTest, ReadsEveryFormOfAPrompt) {
  auto prompt = [](const std::string& json) {
    return ParseOpenAiCall(OpenAiKind::kCompletion, absl::StrCat("{\"prompt\": ", json, "}"), "");
  };
  EXPECT_EQ(std::get<std::string>(prompt("\"text\"")->request.prompt), "text");
  EXPECT_EQ(std::get<std::string>(prompt("[\"text\"]")->request.prompt), "text");
  EXPECT_THAT(std::get<std::vector<int32_t>>(prompt("[1, 2]")->request.prompt), ElementsAre(1, 2));
  EXPECT_THAT(std::get<std::vector<int32_t>>(prompt("[[1, 2]]")->request.prompt), ElementsAre(1, 2));
  for (const char* bad : {"[\"a\", \"b\"]", "[[1], [2]]", "7", "{}", "null", "[1, \"a\"]", "[-1]", "[1.5]",
                          "[4294967296]", "[[\"a\"]]"}) {
    const auto call = prompt(bad);
    EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(ErrorParameter(call.status()), "prompt") << bad;
  }
}

TEST(OpenAiRequestTest, ReadsEveryParameter) {
  const auto good = Completion(
      R"(, "model": "demo", "domain": "cpp", "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": -1,
         "logit_bias": {"7": -100, "8": 1.5}, "stop": ["a", "b"], "stop_token_ids": [9], "ignore_eos": true,
         "logprobs": 2, "cache_salt": "s", "stream": true, "stream_options": {"include_usage": true}, "return_token_ids": true)");
  ASSERT_TRUE(good.ok()) << good.status();
  const GenerationRequest& request = good->request;
  EXPECT_EQ(request.model, "demo");
  EXPECT_EQ(request.domain_wishes[0].domain, "cpp");
  EXPECT_EQ(request.max_tokens, 5);
  EXPECT_EQ(request.temperature, 0.5);
  EXPECT_EQ(request.top_p, 0.25);
  EXPECT_EQ(request.top_k, 3);
  EXPECT_EQ(request.seed, ~uint64_t{0});
  EXPECT_THAT(request.logit_bias, ElementsAre(testing::Pair(7, -100.0f), testing::Pair(8, 1.5f)));
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(9));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.logprobs, 2);
  EXPECT_EQ(request.cache_salt, "s");
  EXPECT_TRUE(good->stream && good->include_usage && good->return_token_ids);
}

TEST(OpenAiRequestTest, WhatIsNotSaidStaysOpen) {
  const auto call = Completion("");
  ASSERT_TRUE(call.ok());
  EXPECT_FALSE(call->request.max_tokens || call->request.temperature || call->request.top_p || call->request.seed ||
               call->request.logprobs);
  EXPECT_FALSE(call->stream);
  EXPECT_FALSE(Completion(R"(, "max_tokens": null)")->request.max_tokens);
}

TEST(OpenAiRequestTest, ChatTakesStringsAndTextParts) {
  const auto call = ParseOpenAiCall(OpenAiKind::kChat, R"({"messages": [
      {"role": "system", "content": "s"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "logprobs": true, "top_logprobs": 4, "max_completion_tokens": 6})",
                                    "cpp");
  ASSERT_TRUE(call.ok()) << call.status();
  const auto& messages = std::get<ChatPrompt>(call->request.prompt).messages;
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "ab");
  EXPECT_EQ(call->request.logprobs, 4);
  EXPECT_EQ(call->request.max_tokens, 6);
  EXPECT_EQ(call->request.domain_wishes[1].domain, "cpp");
}

TEST(OpenAiRequestTest, DamagedMessagesAreRefused) {
  for (const char* messages :
       {"null", "[]", "{}", "[7]", R"([{"content": "c"}])", R"([{"role": "user"}])",
        R"([{"role": "tool", "content": "c"}])", R"([{"role": "user", "content": 7}])",
        R"([{"role": "user", "content": [{"type": "image_url"}]}])",
        R"([{"role": "user", "content": [{"type": "text"}]}])", R"([{"role": "user", "content": ["c"]}])",
        R"([{"role": "assistant", "content": "c", "tool_calls": [1]}])"}) {
    const auto call = ParseOpenAiCall(OpenAiKind::kChat, absl::StrCat("{\"messages\": ", messages, "}"), "");
    EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << messages;
    EXPECT_EQ(ErrorParameter(call.status()), "messages") << messages;
  }
}

TEST(OpenAiRequestTest, UnbuiltParametersAreRefusedByNameUnlessNeutral) {
  const std::map<std::string, std::pair<std::string, std::string>> cases = {
      // name: {refused value, neutral value}
      {"n", {"2", "1"}},
      {"best_of", {"3", "1"}},
      {"echo", {"true", "false"}},
      {"suffix", {"\"x\"", "\"\""}},
      {"presence_penalty", {"0.5", "0"}},
      {"frequency_penalty", {"-1", "0.0"}},
      {"tools", {R"([{"type": "function"}])", "[]"}},
      {"tool_choice", {"\"auto\"", "\"none\""}},
      {"functions", {R"([{"name": "f"}])", "[]"}},
      {"function_call", {"\"auto\"", "\"none\""}},
      {"response_format", {R"({"type": "json_object"})", R"({"type": "text"})"}},
      {"modalities", {R"(["text", "audio"])", R"(["text"])"}},
      {"audio", {"{}", "null"}},
      {"min_p", {"0.1", "0"}},
      {"repetition_penalty", {"1.1", "1.0"}},
  };
  for (const auto& [name, values] : cases) {
    for (const auto& ask : {Completion, Chat}) {
      const auto refused = ask(absl::StrCat(", \"", name, "\": ", values.first));
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_EQ(ErrorParameter(refused.status()), name);
      EXPECT_THAT(Message(refused.status()), HasSubstr(name));
      EXPECT_TRUE(ask(absl::StrCat(", \"", name, "\": ", values.second)).ok()) << name;
      EXPECT_TRUE(ask(absl::StrCat(", \"", name, "\": null")).ok()) << name;
    }
  }
}

TEST(OpenAiRequestTest, WrongTypesNameTheirParameter) {
  for (const auto& [name, value] : std::multimap<std::string, std::string>{{"max_tokens", "\"many\""},
                                                                           {"max_tokens", "1.5"},
                                                                           {"temperature", "\"hot\""},
                                                                           {"top_p", "[]"},
                                                                           {"top_k", "1.5"},
                                                                           {"seed", "1.5"},
                                                                           {"seed", "\"x\""},
                                                                           {"stream", "\"yes\""},
                                                                           {"stop", "7"},
                                                                           {"stop", "[7]"},
                                                                           {"stop_token_ids", "7"},
                                                                           {"logit_bias", "[]"},
                                                                           {"logit_bias", R"({"a": 1})"},
                                                                           {"logit_bias", R"({"1": "b"})"},
                                                                           {"model", "7"},
                                                                           {"domain", "7"},
                                                                           {"cache_salt", "7"},
                                                                           {"ignore_eos", "1"},
                                                                           {"logprobs", "\"all\""},
                                                                           {"stream_options", "{}"}}) {
    const auto call = Completion(absl::StrCat(", \"", name, "\": ", value));
    EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << value;
    EXPECT_EQ(ErrorParameter(call.status()), name) << value;
  }
  EXPECT_EQ(ErrorParameter(Chat(R"(, "top_logprobs": 3)").status()), "top_logprobs");
  EXPECT_EQ(ErrorParameter(Chat(R"(, "logprobs": true, "top_logprobs": 21)").status()), "top_logprobs");
  EXPECT_EQ(ErrorParameter(Chat(R"(, "max_completion_tokens": 0)").status()), "max_completion_tokens");
}

TEST(OpenAiRequestTest, WhatIsNotJsonIsAnInvalidArgument) {
  const std::string deep = absl::StrCat("{\"prompt\": ", std::string(100000, '['), std::string(100000, ']'), "}");
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("7"), std::string("{\"prompt\": \"\xFF\"}"),
        std::string("{\"prompt\": \"\xC3\"}"), std::string("{\"prompt\": \"a\", \"prompt\": \"b\"}"), deep}) {
    EXPECT_EQ(ParseOpenAiCall(OpenAiKind::kCompletion, body, "").status().code(), absl::StatusCode::kInvalidArgument)
        << body.substr(0, 50);
  }
  EXPECT_TRUE(ParseOpenAiCall(OpenAiKind::kCompletion, "{\"prompt\": \"\xC3\xA9\"}", "").ok());
}

TEST(RequestErrorTest, StatusesMapToHttpAsTheDesignSays) {
  const std::map<absl::StatusCode, int> table = {
      {absl::StatusCode::kInvalidArgument, 400},   {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kUnauthenticated, 401},   {absl::StatusCode::kPermissionDenied, 403},
      {absl::StatusCode::kResourceExhausted, 429}, {absl::StatusCode::kFailedPrecondition, 409},
      {absl::StatusCode::kUnavailable, 503},       {absl::StatusCode::kDeadlineExceeded, 504},
      {absl::StatusCode::kCancelled, 499},         {absl::StatusCode::kInternal, 500}};
  for (const auto& [code, http] : table) EXPECT_EQ(HttpStatusCode(code), http);
}

}  // namespace
}  // namespace scion
