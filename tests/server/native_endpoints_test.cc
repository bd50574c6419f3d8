// What OpenAI's API lacks, over real sockets: score, tokenize, detokenize, domains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/server/raw_client.h"
#include "tests/server/test_server.h"

namespace scion {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

constexpr char kScore[] = "/v1/score";
constexpr char kTokenize[] = "/v1/tokenize";
constexpr char kDetokenize[] = "/v1/detokenize";
constexpr char kDomains[] = "/v1/domains";

TEST(NativeEndpointsTest, AScoreIsTheLogprobOfEveryTokenButTheFirst) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kScore, R"({"prompt": "abc", "domain": "cpp", "cache_salt": "a"})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "abc");
  EXPECT_EQ(request->request().domain, 1);
  EXPECT_TRUE(request->request().score_prompt);
  EXPECT_EQ(request->request().max_new_tokens, 0);
  EXPECT_EQ(request->request().tenant, 0xca978112ca1bbdcau) << "the first bytes of the salt's SHA-256";
  request->EmitScore('b', -0.5f);
  request->EmitScore('c', -1.25f);
  request->Finish(FinishReason::kScored);
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->headers.at("content-type"), "application/json");
  EXPECT_EQ(
      json::parse(response->body),
      json({{"token_ids", {'a', 'b', 'c'}}, {"logprobs", {-0.5, -1.25}}, {"total_logprob", -1.75}, {"domain", "cpp"}}));
  EXPECT_THAT(Get(server.http_port(), "/metrics").body,
              HasSubstr("scion_requests_total{code=\"OK\",transport=\"http\"} 1"));
}

// One token has no score: nothing comes before it.
TEST(NativeEndpointsTest, AScoreOfOneTokenIsEmpty) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  const json body = json::parse(Post(server.http_port(), kScore, R"({"prompt": [97]})").body);
  EXPECT_EQ(body, json::parse(R"({"token_ids": [97], "logprobs": [], "total_logprob": 0.0, "domain": "en"})"));
}

TEST(NativeEndpointsTest, AScoreIsOfTheDomainThatBodyHeaderOrModelNames) {
  TestServer server;
  server.engine().SetDefaultDomain(1);
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  const auto domain_of = [&](const char* body, const char* headers) {
    const RawResponse response = Post(server.http_port(), kScore, body, headers);
    EXPECT_EQ(response.status, 200) << body;
    const auto request = server.engine().Take();
    const std::string domain = json::parse(response.body)["domain"];
    EXPECT_EQ(request->request().domain, domain == "cpp" ? 1 : 0);
    return domain;
  };
  EXPECT_EQ(domain_of(R"({"prompt": "a"})", ""), "cpp") << "the default";
  EXPECT_EQ(domain_of(R"({"prompt": "a", "domain": "en"})", ""), "en");
  EXPECT_EQ(domain_of(R"({"prompt": "a", "model": "demo@en"})", ""), "en");
  EXPECT_EQ(domain_of(R"({"prompt": "a"})", "X-Scion-Domain: en\r\n"), "en");
  const RawResponse two =
      Post(server.http_port(), kScore, R"({"prompt": "a", "domain": "en"})", "X-Scion-Domain: cpp\r\n");
  EXPECT_EQ(two.status, 400);
  EXPECT_THAT(ErrorOf(two, "message"), HasSubstr("two domains"));
}

TEST(NativeEndpointsTest, AScoredTextHasTheSpecialTokensOfAPrompt) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  server.engine().SetAddsEos(true);
  const json body = json::parse(Post(server.http_port(), kScore, R"({"prompt": "a<eos>b"})").body);
  EXPECT_EQ(body["token_ids"], json({'a', kFakeEos, 'b', kFakeEos}));
}

// JSON has no NaN and no infinity: null, and the answer stays JSON.
TEST(NativeEndpointsTest, AScoreThatIsNoFiniteNumberIsNull) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) {
    request.EmitScore('b', std::numeric_limits<float>::quiet_NaN());
    request.EmitScore('c', -std::numeric_limits<float>::infinity());
    request.EmitScore('d', -1.0f);
    request.Finish(FinishReason::kScored);
  });
  const json body = json::parse(Post(server.http_port(), kScore, R"({"prompt": "abcd"})").body);
  EXPECT_EQ(body["logprobs"], json({nullptr, nullptr, -1.0}));
  EXPECT_EQ(body["total_logprob"], json());
}

TEST(NativeEndpointsTest, AScoreThatFailsHasTheErrorsStatus) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) {
    request.EmitScore('b', -0.5f);
    request.Finish(FinishReason::kError, absl::DeadlineExceededError("too late"));
  });
  const RawResponse late = Post(server.http_port(), kScore, R"({"prompt": "ab"})");
  EXPECT_EQ(late.status, 504);
  EXPECT_EQ(ErrorOf(late, "message"), "too late");
  server.engine().SetSubmitStatus(absl::ResourceExhaustedError("the queue is full"));
  const RawResponse full = Post(server.http_port(), kScore, R"({"prompt": "ab"})");
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.headers.count("retry-after"), 1u);
  const std::string metrics = Get(server.http_port(), "/metrics").body;
  for (const char* code : {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}) {
    EXPECT_THAT(metrics, HasSubstr(absl::StrCat("scion_requests_total{code=\"", code, "\",transport=\"http\"} 1")));
  }
}

TEST(NativeEndpointsTest, AScoreWhoseClientLeavesFreesItsWork) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kScore, R"({"prompt": [97, 98]})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->cancelled());
  client.CloseWithFin();
  EXPECT_TRUE(request->WaitCancelled());
}

TEST(NativeEndpointsTest, TokensAndBytesAreInverses) {
  TestServer server;
  const int port = server.http_port();
  const auto tokens = json::parse(Post(port, kTokenize, R"({"text": "h\u00e9"})").body);
  EXPECT_EQ(tokens, json({{"token_ids", {'h', 0xC3, 0xA9}}}));
  const auto text = json::parse(Post(port, kDetokenize, R"({"token_ids": [104, 195, 169, 195]})").body);
  EXPECT_EQ(text["bytes"], json({'h', 0xC3, 0xA9, 0xC3}));
  EXPECT_EQ(text["text"], "h\u00e9\uFFFD");
  EXPECT_EQ(json::parse(Post(port, kTokenize, R"({"text": ""})").body)["token_ids"], json::array());
  EXPECT_EQ(json::parse(Post(port, kDetokenize, R"({"token_ids": []})").body)["text"], "");
  // The engine has no part in it.
  EXPECT_EQ(server.engine().submitted(), 0);
  EXPECT_THAT(Get(port, "/metrics").body, Not(HasSubstr("scion_requests_total{")));
}

TEST(NativeEndpointsTest, SpecialTokensAreAddedParsedAndSkippedOnlyWhenAsked) {
  TestServer server;
  server.engine().SetAddsEos(true);
  const auto ids = [&](const char* body) {
    return json::parse(Post(server.http_port(), kTokenize, body).body)["token_ids"];
  };
  const json as_text = {'a', '<', 'e', 'o', 's', '>'};
  json and_eos = as_text;
  and_eos.push_back(kFakeEos);
  EXPECT_EQ(ids(R"({"text": "a<eos>"})"), as_text);
  EXPECT_EQ(ids(R"({"text": "a<eos>", "add_special": false, "parse_special": false})"), as_text);
  EXPECT_EQ(ids(R"({"text": "a<eos>", "add_special": true})"), and_eos);
  EXPECT_EQ(ids(R"({"text": "a<eos>", "parse_special": true})"), json({'a', kFakeEos}));
  EXPECT_EQ(ids(R"({"text": "a<eos>", "parse_special": true, "add_special": true})"), json({'a', kFakeEos, kFakeEos}));
  const auto text = [&](const char* body) {
    return json::parse(Post(server.http_port(), kDetokenize, body).body)["text"];
  };
  EXPECT_EQ(text(R"({"token_ids": [104, 256]})"), "h<eos>");
  EXPECT_EQ(text(R"({"token_ids": [104, 256], "skip_special": false})"), "h<eos>");
  EXPECT_EQ(text(R"({"token_ids": [104, 256], "skip_special": true})"), "h");
}

TEST(NativeEndpointsTest, DomainsHaveTheirSizesAndLoad) {
  TestServer server;
  server.engine().SetDefaultDomain(1);
  EXPECT_EQ(json::parse(Get(server.http_port(), kDomains).body), json::parse(R"({
      "model": "demo", "default_domain": "cpp", "domains": [
        {"name": "en", "num_experts": 2, "generation": 1, "weight_bytes": 300, "requests": 21, "prompt_tokens": 22,
         "generated_tokens": 23},
        {"name": "cpp", "num_experts": 3, "generation": 2, "weight_bytes": 400, "requests": 97, "prompt_tokens": 98,
         "generated_tokens": 99}]})"));
}

// ---- refusals ----

TEST(NativeEndpointsTest, WhatOpenAiLacksIsRefusedInTheSameForm) {
  TestServer server;
  struct Case {
    const char* path;
    const char* body;
    int status;
    const char* param;
    const char* message;
  };
  for (const Case& c : {
           Case{kScore, R"({"domain": "cpp"})", 400, "prompt", "prompt must be a string, or an array of token ids"},
           Case{kScore, R"({"prompt": {}})", 400, "prompt", "prompt must be a string, or an array of token ids"},
           Case{kScore, R"({"prompt": ""})", 400, "prompt", "no tokens"},
           Case{kScore, R"({"prompt": []})", 400, "prompt", "no tokens"},
           Case{kScore, R"({"prompt": [97, -1]})", 400, "prompt", "prompt must hold token ids"},
           Case{kScore, R"({"prompt": [97, 257]})", 400, "prompt", "token id 257 is outside the vocabulary of 257"},
           Case{kScore, R"({"prompt": "a", "domain": "fr"})", 404, "domain", "en, cpp"},
           Case{kScore, R"({"prompt": "a", "domain": 1})", 400, "domain", "domain"},
           Case{kScore, R"({"prompt": "a", "cache_salt": 1})", 400, "cache_salt", "cache_salt"},
           Case{kScore, R"({"prompt": "a", "model": "gpt"})", 404, "model", "'gpt'"},
           Case{kScore, "[]", 400, "null", "must be a JSON object"},
           Case{kTokenize, "{}", 400, "text", "text is missing"},
           Case{kTokenize, R"({"text": 3})", 400, "text", "text"},
           Case{kTokenize, R"({"text": "a", "add_special": 1})", 400, "add_special", "add_special"},
           Case{kTokenize, R"({"text": "a", "parse_special": 1})", 400, "parse_special", "parse_special"},
           Case{kTokenize, "{", 400, "null", "parse error"},
           Case{kDetokenize, "{}", 400, "token_ids", "token_ids must be an array"},
           Case{kDetokenize, R"({"token_ids": "a"})", 400, "token_ids", "token_ids must be an array"},
           Case{kDetokenize, R"({"token_ids": [-1]})", 400, "token_ids", "token_ids must hold token ids"},
           Case{kDetokenize, R"({"token_ids": [1.5]})", 400, "token_ids", "token_ids must hold token ids"},
           Case{kDetokenize, R"({"token_ids": [4294967297]})", 400, "token_ids", "token_ids must hold token ids"},
           Case{kDetokenize, R"({"token_ids": [257]})", 400, "token_ids", "257 is outside the vocabulary of 257"},
           Case{kDetokenize, R"({"token_ids": [1], "skip_special": "no"})", 400, "skip_special", "skip_special"},
           Case{kDetokenize, "7", 400, "null", "must be a JSON object"},
       }) {
    const RawResponse response = Post(server.http_port(), c.path, c.body);
    EXPECT_EQ(response.status, c.status) << c.path << c.body;
    EXPECT_EQ(ErrorOf(response, "type"), "invalid_request_error") << c.path << c.body;
    EXPECT_EQ(ErrorOf(response, "param"), c.param) << c.path << c.body;
    EXPECT_THAT(ErrorOf(response, "message"), HasSubstr(c.message)) << c.path << c.body;
  }
  EXPECT_EQ(server.engine().submitted(), 0);
  for (const char* path : {kScore, kTokenize, kDetokenize}) EXPECT_EQ(Get(server.http_port(), path).status, 405);
  EXPECT_EQ(Post(server.http_port(), kDomains, "{}").status, 405);
}

// As long as the context is fine: nothing is generated behind it.
TEST(NativeEndpointsTest, AScoreBeyondTheContextSaysBothNumbers) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  const auto score = [&](const json& prompt) {
    return Post(server.http_port(), kScore, json({{"prompt", prompt}}).dump());
  };
  EXPECT_EQ(score(std::string(kFakeContext, 'a')).status, 200);
  EXPECT_EQ(score(std::vector<int>(kFakeContext, 'a')).status, 200);
  for (const RawResponse& response :
       {score(std::string(kFakeContext + 1, 'a')), score(std::vector<int>(kFakeContext + 1, 'a'))}) {
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(ErrorOf(response, "code"), "context_length_exceeded");
    EXPECT_EQ(ErrorOf(response, "param"), "prompt");
    EXPECT_THAT(ErrorOf(response, "message"), AllOf(HasSubstr("64 tokens"), HasSubstr("has 65")));
  }
  // Far too long a text is refused before it is tokenized.
  EXPECT_THAT(ErrorOf(score(std::string(1 << 20, 'a')), "message"), HasSubstr("1048576 bytes"));
  EXPECT_EQ(server.engine().submitted(), 2);
}

TEST(NativeEndpointsTest, LimitsOfBodiesHoldForThemToo) {
  ServerOptions options = TestServer::DefaultOptions();
  options.http.limits.max_body_bytes = 100;
  TestServer server(options);
  for (const char* path : {kScore, kTokenize, kDetokenize}) {
    EXPECT_EQ(Post(server.http_port(), path, std::string(101, ' ')).status, 413) << path;
    EXPECT_EQ(Post(server.http_port(), path, std::string(100, ' ')).status, 400) << path << ": the control is read";
  }
}

TEST(NativeEndpointsTest, WithoutAModelTheyAreUnavailable) {
  TestServer server(TestServer::DefaultOptions(), /*open=*/false);
  const auto all = [&] {
    return std::vector<RawResponse>{
        Post(server.http_port(), kScore, R"({"prompt": "a"})"), Post(server.http_port(), kTokenize, R"({"text": "a"})"),
        Post(server.http_port(), kDetokenize, R"({"token_ids": [97]})"), Get(server.http_port(), kDomains)};
  };
  for (const RawResponse& response : all()) {
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(response.headers.count("retry-after"), 1u);
    EXPECT_THAT(ErrorOf(response, "message"), HasSubstr("starting"));
  }
  server.Open();
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  for (const RawResponse& response : all()) EXPECT_EQ(response.status, 200) << response.body;
  // Draining takes no new work; what needs no engine is still told.
  server->StartDraining();
  std::vector<int> statuses;
  for (const RawResponse& response : all()) statuses.push_back(response.status);
  EXPECT_THAT(statuses, testing::ElementsAre(503, 200, 200, 200));
}

TEST(NativeEndpointsTest, WithoutATokenizerTokenIdsAreStillScored) {
  TestServer server;
  server.engine().RemoveTokenizer();
  server.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kScored); });
  const int port = server.http_port();
  EXPECT_EQ(Post(port, kScore, R"({"prompt": [97, 98]})").status, 200);
  const RawResponse text = Post(port, kScore, R"({"prompt": "ab"})");
  EXPECT_EQ(text.status, 400);
  EXPECT_EQ(ErrorOf(text, "param"), "prompt");
  for (const RawResponse& response :
       {Post(port, kTokenize, R"({"text": "a"})"), Post(port, kDetokenize, R"({"token_ids": [97]})")}) {
    EXPECT_EQ(response.status, 409);
    EXPECT_THAT(ErrorOf(response, "message"), HasSubstr("no tokenizer"));
  }
}

}  // namespace
}  // namespace scion
