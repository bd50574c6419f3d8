// What OpenAI's API lacks, over real sockets: score, tokenize, detokenize, domains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/server/raw_client.h"
#include "tests/server/test_server.h"

namespace scion {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(NativeEndpointsTest, AScoreIsTheLogprobOfEveryTokenButTheFirst) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText("/v1/score", R"({"prompt": "abc", "domain": "cpp"})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "abc");
  EXPECT_EQ(request->request().domain, 1);
  request->EmitScore('b', -0.5f);
  request->EmitScore('c', -1.25f);
  request->Finish(FinishReason::kScored);
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(
      json::parse(response->body),
      json({{"token_ids", {'a', 'b', 'c'}}, {"logprobs", {-0.5, -1.25}}, {"total_logprob", -1.75}, {"domain", "cpp"}}));
}

TEST(NativeEndpointsTest, AScoreWhoseClientLeavesFreesItsWork) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText("/v1/score", R"({"prompt": [97, 98]})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->cancelled());
  client.CloseWithFin();
  EXPECT_TRUE(request->WaitCancelled());
}

TEST(NativeEndpointsTest, TokensAndBytesAreInverses) {
  TestServer server;
  const int port = server.http_port();
  const auto tokens = json::parse(Post(port, "/v1/tokenize", R"({"text": "h\u00e9"})").body);
  EXPECT_EQ(tokens, json({{"token_ids", {'h', 0xC3, 0xA9}}}));
  const auto text = json::parse(Post(port, "/v1/detokenize", R"({"token_ids": [104, 195, 169, 195]})").body);
  EXPECT_EQ(text["bytes"], json({'h', 0xC3, 0xA9, 0xC3}));
  EXPECT_EQ(text["text"], "h\u00e9\uFFFD");
  const auto special =
      json::parse(Post(port, "/v1/detokenize", R"({"token_ids": [104, 256], "skip_special": true})").body);
  EXPECT_EQ(special["bytes"], json({'h'}));
}

TEST(NativeEndpointsTest, DomainsHaveTheirSizesAndLoad) {
  TestServer server;
  const json body = json::parse(Get(server.http_port(), "/v1/domains").body);
  EXPECT_EQ(body["model"], "demo");
  EXPECT_EQ(body["default_domain"], "en");
  ASSERT_EQ(body["domains"].size(), 2u);
  EXPECT_EQ(body["domains"][1]["name"], "cpp");
  EXPECT_EQ(body["domains"][0]["generation"], 1);
  EXPECT_EQ(body["domains"][1]["generation"], 2);
  EXPECT_EQ(body["domains"][1]["weight_bytes"], 400);
  EXPECT_EQ(body["domains"][1]["generated_tokens"], 99);
}

TEST(NativeEndpointsTest, WhatOpenAiLacksIsRefusedInTheSameForm) {
  TestServer server;
  struct Case {
    const char* path;
    const char* body;
    int status;
    const char* message;
  };
  for (const Case& c : {
           Case{"/v1/score", R"({"domain": "cpp"})", 400, "prompt must be a string, or an array of token ids"},
           Case{"/v1/score", R"({"prompt": "a", "domain": "fr"})", 404, "en, cpp"},
           Case{"/v1/score", "[]", 400, "must be a JSON object"},
           Case{"/v1/tokenize", "{}", 400, "text is missing"},
           Case{"/v1/tokenize", R"({"text": 3})", 400, "text"},
           Case{"/v1/detokenize", R"({"token_ids": "a"})", 400, "token_ids must be an array"},
           Case{"/v1/detokenize", R"({"token_ids": [-1]})", 400, "token_ids must hold token ids"},
           Case{"/v1/detokenize", R"({"token_ids": [257]})", 400, "token id 257 is outside the vocabulary of 257"},
       }) {
    const RawResponse response = Post(server.http_port(), c.path, c.body);
    EXPECT_EQ(response.status, c.status) << c.path << c.body;
    EXPECT_THAT(ErrorOf(response, "message"), HasSubstr(c.message)) << c.path << c.body;
  }
  EXPECT_EQ(server.engine().submitted(), 0);
  EXPECT_EQ(Get(server.http_port(), "/v1/score").status, 405);
  EXPECT_EQ(Post(server.http_port(), "/v1/domains", "{}").status, 405);
}

}  // namespace
}  // namespace scion
