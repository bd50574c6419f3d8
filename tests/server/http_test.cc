// The HTTP side over real sockets, in front of an engine whose timing the test decides.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/server/raw_client.h"
#include "tests/server/test_server.h"

namespace scion {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr char kCompletions[] = "/v1/completions";
constexpr char kChat[] = "/v1/chat/completions";
constexpr char kStreamBody[] = R"({"prompt": "hi", "stream": true})";

void WaitFor(const std::function<bool()>& condition) {
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (!condition()) {
    ASSERT_LT(absl::Now(), limit);
    absl::SleepFor(absl::Milliseconds(1));
  }
}

// ---- answers ----

TEST(HttpTest, AWholeCompletion) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, R"({"prompt": "hi", "model": "demo@cpp", "max_tokens": 7, "seed": 3,
                                         "return_token_ids": true, "logprobs": 1})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "hi");
  EXPECT_EQ(request->request().domain, 1);
  EXPECT_EQ(request->request().max_new_tokens, 7);
  EXPECT_EQ(request->request().sampling.seed, 3u);
  EXPECT_EQ(request->request().sampling.temperature, 0.5f) << "the model's own default";
  EXPECT_EQ(request->request().top_logprobs, 1);
  request->Emit('y', -0.5f, {{.token_id = 'y', .logprob = -0.5f}});
  request->Emit(0xE6, -1.5f, {{.token_id = 0xE7, .logprob = -1.0f}});
  request->Finish(FinishReason::kLength);
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->headers.at("content-type"), "application/json");
  const json body = json::parse(response->body);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["model"], "demo@cpp");
  const json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], "y\uFFFD");
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["token_ids"], json({'y', 0xE6}));
  EXPECT_EQ(choice["logprobs"]["tokens"], json({"y", "bytes:\\xe6"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], json({-0.5, -1.5}));
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][1], json({{"bytes:\\xe7", -1.0}}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], json({0, 1}));
  EXPECT_EQ(body["usage"], json({{"prompt_tokens", 2},
                                 {"completion_tokens", 2},
                                 {"total_tokens", 4},
                                 {"prompt_tokens_details", {{"cached_tokens", kFakeCachedTokens}}}}));
}

TEST(HttpTest, TheHeaderMayNameTheDomain) {
  TestServer server;
  for (const char* path : {kCompletions, kChat}) {
    const std::string body =
        path == kChat ? R"({"messages": [{"role": "user", "content": "hi"}]})" : R"({"prompt": "hi"})";
    RawClient client(server.http_port());
    client.Send(PostText(path, body, "X-Scion-Domain: cpp\r\n"));
    const auto request = server.engine().Take();
    ASSERT_TRUE(request);
    EXPECT_EQ(request->request().domain, 1) << path;
  }
}

// The engine keeps tenants apart; which is whose is decided by the salt alone: the first bytes of its SHA-256.
TEST(HttpTest, TheCacheSaltIsTheTenant) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, R"({"prompt": "hi"})"));
  const auto without = server.engine().Take();
  ASSERT_TRUE(without);
  EXPECT_EQ(without->request().tenant, 0u);
  RawClient salted(server.http_port());
  salted.Send(PostText(kChat, R"({"messages": [{"role": "user", "content": "hi"}], "cache_salt": "a"})"));
  const auto with = server.engine().Take();
  ASSERT_TRUE(with);
  EXPECT_EQ(with->request().tenant, 0xca978112ca1bbdcau);
}

TEST(HttpTest, AStreamedCompletionHasOneEndAndThenDone) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, R"({"prompt": "hi", "stream": true, "stream_options": {"include_usage": true}})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("a");
  ASSERT_TRUE(client.ReadUntil(R"("text":"a")")) << "a token is shown before the next is there";
  request->EmitText("b");
  request->Finish(FinishReason::kStop);
  std::string rest;
  ASSERT_TRUE(client.ReadUntil("data: [DONE]\n\n", &rest));
  EXPECT_THAT(rest, HasSubstr(R"("text":"b")"));
  const size_t finish = rest.find(R"("finish_reason":"stop")");
  ASSERT_NE(finish, std::string::npos);
  EXPECT_EQ(rest.find(R"("finish_reason":"stop")", finish + 1), std::string::npos);
  EXPECT_GT(rest.find(R"("usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,)"), finish);
  EXPECT_GT(rest.find(R"("prompt_tokens_details":{"cached_tokens":1})"), finish);
  EXPECT_EQ(request->finishes_taken(), 1);
  client.Send(GetText("/healthz"));
  EXPECT_TRUE(client.ReadUntil("HTTP/1.1 200")) << "the connection is kept";
}

TEST(HttpTest, ChatJoinsItsMessagesAndStreamsDeltas) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kChat, R"({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
                                  "stream": true})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "a\nb");
  request->EmitText("c");
  request->Finish(FinishReason::kLength);
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  EXPECT_THAT(response->headers.at("content-type"), HasSubstr("text/event-stream"));
  const size_t role = response->body.find(R"("delta":{"role":"assistant","content":""})");
  const size_t text = response->body.find(R"("delta":{"content":"c"})");
  const size_t end = response->body.find(R"("finish_reason":"length")");
  EXPECT_LT(role, text);
  EXPECT_LT(text, end);
  EXPECT_NE(end, std::string::npos);
  EXPECT_TRUE(response->body.ends_with("data: [DONE]\n\n"));
}

TEST(HttpTest, AStopStringEndsTheTextBeforeItAndTheWorkAtOnce) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, R"({"prompt": "hi", "stop": "END"})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("xENDy");
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  const json body = json::parse(response->body);
  EXPECT_EQ(body["choices"][0]["text"], "x");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(request->WaitCancelled());
}

TEST(HttpTest, WithoutMaxTokensTheTextMayGoToTheEndOfTheContext) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, R"({"prompt": "hello"})"));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->request().max_new_tokens, kFakeContext - 5);
}

TEST(HttpTest, ModelsAreTheModelAndItsDomains) {
  TestServer server;
  const json body = json::parse(Get(server.http_port(), "/v1/models").body);
  std::vector<std::string> ids;
  for (const json& model : body["data"]) ids.push_back(model["id"]);
  EXPECT_THAT(ids, testing::ElementsAre("demo", "demo@en", "demo@cpp"));
  EXPECT_EQ(Get(server.http_port(), "/v1/models/demo").status, 200);
  EXPECT_EQ(json::parse(Get(server.http_port(), "/v1/models/demo%40cpp").body)["id"], "demo@cpp");
  EXPECT_EQ(Get(server.http_port(), "/v1/models/other").status, 404);
}

TEST(HttpTest, MetricsShowEngineAndServerAndNeedNoEngine) {
  TestServer server(TestServer::DefaultOptions(), /*open=*/false);
  EXPECT_THAT(Get(server.http_port(), "/metrics").body, HasSubstr("scion_ready 0"));
  server.Open();
  server.engine().SetReply([](FakeRequest& request) {
    request.EmitText("ab");
    request.Finish(FinishReason::kStop);
  });
  EXPECT_EQ(Post(server.http_port(), kCompletions, R"({"prompt": "hi"})").status, 200);
  EXPECT_EQ(Post(server.http_port(), kCompletions, R"({"prompt": 7})").status, 400);
  const std::string text = Get(server.http_port(), "/metrics").body;
  for (const char* line :
       {"scion_ready 1", "scion_requests_waiting 3", "scion_requests_running 2", "scion_requests_running_max 7",
        "scion_kv_blocks_in_use 5", "scion_kv_blocks_cached 6", "scion_kv_blocks_total 100",
        "scion_prefix_cache_hit_tokens_total 64", "scion_prefix_cache_miss_tokens_total 65",
        "scion_prefix_cache_evictions_total 8", R"(scion_expert_tokens_total{domain="cpp",layer="1",expert="1"} 14)",
        R"(scion_generated_tokens_total{domain="cpp"} 99)", R"(scion_domain_weight_bytes{domain="cpp"} 400)",
        R"(scion_build_info{version="1.2.3",tier="portable")", "scion_time_to_first_token_seconds_count 1",
        "scion_inter_token_latency_seconds_count 1"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, testing::ContainsRegex("scion_requests_total\\{code=\"OK\",transport=\"http\"\\} 1"));
  EXPECT_THAT(text, testing::ContainsRegex("scion_requests_total\\{code=\"INVALID_ARGUMENT\",transport=\"http\"\\} 1"));
}

// ---- refusals ----

TEST(HttpTest, ErrorsAreTypedAsOpenAiClientsExpect) {
  TestServer server;
  struct Case {
    const char* body;
    int status;
    const char* type;
    const char* param;
    const char* message;
  };
  for (const Case& c : {
           Case{R"({"prompt": "a", "n": 2})", 400, "invalid_request_error", "n", "n"},
           Case{R"({"prompt": "a", "temperature": 3})", 400, "invalid_request_error", "temperature", "from 0 to 2"},
           Case{R"({"prompt": "a", "top_p": 0})", 400, "invalid_request_error", "top_p", "top_p"},
           Case{R"({"prompt": "a", "top_k": -1})", 400, "invalid_request_error", "top_k", "top_k"},
           Case{R"({"prompt": "a", "max_tokens": 0})", 400, "invalid_request_error", "max_tokens", "at least 1"},
           Case{R"({"prompt": "a", "logit_bias": {"1": 101}})", 400, "invalid_request_error", "logit_bias", "100"},
           Case{R"({"prompt": "a", "logit_bias": {"999": 1}})", 400, "invalid_request_error", "logit_bias", "999"},
           Case{R"({"prompt": "a", "logprobs": 21})", 400, "invalid_request_error", "logprobs", "20"},
           Case{R"({"prompt": "a", "stop": ""})", 400, "invalid_request_error", "stop", "empty"},
           Case{R"({"prompt": [999]})", 400, "invalid_request_error", "prompt", "999"},
           Case{R"({"prompt": ""})", 400, "invalid_request_error", "prompt", "no tokens"},
           Case{R"({"prompt": "a", "model": "gpt"})", 404, "invalid_request_error", "model", "'gpt'"},
           Case{R"({"prompt": "a", "domain": "fr"})", 404, "invalid_request_error", "domain", "en, cpp"},
           Case{"{", 400, "invalid_request_error", "null", "parse error"},
           Case{"{\"prompt\": \"\xFF\"}", 400, "invalid_request_error", "null", "UTF-8"},
       }) {
    const RawResponse response = Post(server.http_port(), kCompletions, c.body);
    EXPECT_EQ(response.status, c.status) << c.body;
    EXPECT_EQ(ErrorOf(response, "type"), c.type) << c.body;
    EXPECT_EQ(ErrorOf(response, "param"), c.param) << c.body;
    EXPECT_THAT(ErrorOf(response, "message"), HasSubstr(c.message)) << c.body;
  }
  EXPECT_EQ(server.engine().submitted(), 0);
}

TEST(HttpTest, AContextOverflowSaysBothNumbers) {
  TestServer server;
  const std::string long_prompt(70, 'a');
  for (const std::string& body : {absl::StrCat(R"({"prompt": ")", long_prompt, R"(", "max_tokens": 1})"),
                                  absl::StrCat(R"({"prompt": ")", long_prompt, R"("})"),
                                  std::string(R"({"prompt": "aaaaaaaaaaa", "max_tokens": 60})")}) {
    const RawResponse response = Post(server.http_port(), kCompletions, body);
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(ErrorOf(response, "code"), "context_length_exceeded");
    EXPECT_THAT(ErrorOf(response, "message"), AllOf(HasSubstr("64"), HasSubstr("71")));
  }
  // Far too long a text is refused before it is tokenized.
  const RawResponse huge =
      Post(server.http_port(), kCompletions, absl::StrCat(R"({"prompt": ")", std::string(1 << 20, 'a'), R"("})"));
  EXPECT_EQ(huge.status, 400);
  EXPECT_THAT(ErrorOf(huge, "message"), AllOf(HasSubstr("64"), HasSubstr("1048576")));
}

TEST(HttpTest, AFullQueueIs429WithATimeToComeBack) {
  TestServer server;
  server.engine().SetSubmitStatus(absl::ResourceExhaustedError("the queue is full"));
  const RawResponse response = Post(server.http_port(), kCompletions, R"({"prompt": "a"})");
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.count("retry-after"), 1u);
  EXPECT_EQ(ErrorOf(response, "type"), "rate_limit_error");
}

TEST(HttpTest, AnErrorBeforeTheFirstTokenIsAStatusEvenOfAStream) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  request->Finish(FinishReason::kError, absl::DeadlineExceededError("too late"));
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 504);
  EXPECT_EQ(ErrorOf(*response, "message"), "too late");
}

TEST(HttpTest, AnErrorAfterTheFirstTokenIsTheLastEvent) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("a");
  ASSERT_TRUE(client.ReadUntil(R"("text":"a")"));
  request->Finish(FinishReason::kError, absl::InternalError("broken"));
  std::string rest;
  ASSERT_TRUE(client.ReadUntil("\r\n0\r\n\r\n", &rest));
  EXPECT_THAT(rest, HasSubstr(R"("message":"broken")"));
  EXPECT_THAT(rest, Not(HasSubstr("[DONE]")));
  EXPECT_THAT(rest, Not(HasSubstr(R"("finish_reason":")")));
}

TEST(HttpTest, UnknownPagesAndMethodsAreRefusedInJson) {
  TestServer server;
  EXPECT_EQ(ErrorOf(Get(server.http_port(), "/nothing"), "type"), "invalid_request_error");
  EXPECT_EQ(Get(server.http_port(), "/nothing").status, 404);
  const RawResponse wrong = Get(server.http_port(), kCompletions);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_THAT(wrong.headers.at("allow"), HasSubstr("POST"));
  EXPECT_EQ(Post(server.http_port(), "/healthz", "").status, 405);
  RawClient options(server.http_port());
  options.Send("OPTIONS /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(options.ReadResponse()->status, 204);
  RawClient head(server.http_port());
  head.Send(absl::StrCat("HEAD /readyz HTTP/1.1\r\nHost: a\r\n\r\n", GetText("/healthz")));
  const auto no_body = head.ReadResponse(/*has_body=*/false);
  EXPECT_EQ(no_body->status, 200);
  EXPECT_EQ(no_body->headers.at("content-length"), "6");
  EXPECT_EQ(head.ReadResponse()->body, "ok\n") << "nothing came between";
}

TEST(HttpTest, LimitsAreKeptAndNamed) {
  ServerOptions options = TestServer::DefaultOptions();
  options.http.limits.max_body_bytes = 1000;
  options.http.limits.max_header_bytes = 2000;
  TestServer server(options);
  const RawResponse body = Post(server.http_port(), kCompletions, std::string(1001, 'x'));
  EXPECT_EQ(body.status, 413);
  EXPECT_THAT(ErrorOf(body, "message"), HasSubstr("1000"));
  EXPECT_EQ(Post(server.http_port(), kCompletions, std::string(1000, 'x')).status, 400) << "the control is read";
  RawClient chunked(server.http_port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 3; ++i) chunked.Send(absl::StrCat("190\r\n", std::string(400, 'x'), "\r\n"));
  EXPECT_EQ(chunked.ReadResponse()->status, 413);
  RawClient headers(server.http_port());
  headers.Send(GetText("/healthz", absl::StrCat("X: ", std::string(3000, 'x'), "\r\n")));
  EXPECT_EQ(headers.ReadResponse()->status, 431);
  RawClient garbage(server.http_port());
  garbage.Send("\x16\x03\x01 garbage\r\n\r\n");
  EXPECT_EQ(garbage.ReadResponse()->status, 400);
  RawClient no_host(server.http_port());
  no_host.Send("GET /healthz HTTP/1.1\r\n\r\n");
  EXPECT_EQ(no_host.ReadResponse()->status, 400);
}

TEST(HttpTest, ChunkedBodiesAndContinueAreUnderstood) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n"));
  client.Send("8\r\n{\"prompt\r\n");
  client.Send("9\r\n\": \"abc\"}\r\n0\r\n\r\n");
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "abc");
}

TEST(HttpTest, PipelinedRequestsAreAnsweredInTheirOrder) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(absl::StrCat(PostText(kCompletions, R"({"prompt": "first"})"),
                           PostText(kCompletions, R"({"prompt": "second"})"), GetText("/healthz")));
  auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "first");
  EXPECT_EQ(server.engine().submitted(), 1) << "the second waits for the first";
  request->EmitText("1");
  request->Finish(FinishReason::kStop);
  EXPECT_THAT(client.ReadResponse()->body, HasSubstr(R"("text":"1")"));
  request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "second");
  request->EmitText("2");
  request->Finish(FinishReason::kStop);
  EXPECT_THAT(client.ReadResponse()->body, HasSubstr(R"("text":"2")"));
  EXPECT_EQ(client.ReadResponse()->body, "ok\n");
}

TEST(HttpTest, TooManyConnectionsAreToldSo) {
  ServerOptions options = TestServer::DefaultOptions();
  options.http.limits.max_connections = 2;
  TestServer server(options);
  RawClient first(server.http_port());
  first.Send(GetText("/healthz"));
  EXPECT_EQ(first.ReadResponse()->status, 200);
  auto second = std::make_unique<RawClient>(server.http_port());
  second->Send(GetText("/healthz"));
  EXPECT_EQ(second->ReadResponse()->status, 200);
  RawClient third(server.http_port());
  EXPECT_THAT(third.ReadToEnd(), HasSubstr("503"));
  second.reset();
  WaitFor([&] { return Get(server.http_port(), "/healthz").status == 200; });
}

TEST(HttpTest, HeadersAndBodiesThatDoNotComeInTimeAreGivenUp) {
  ServerOptions options = TestServer::DefaultOptions();
  options.http.limits.header_timeout = absl::Milliseconds(50);
  options.http.limits.body_timeout = absl::Milliseconds(50);
  options.http.limits.idle_timeout = absl::Milliseconds(50);
  TestServer server(options);
  RawClient header(server.http_port());
  header.Send("GET /healthz HTTP/1.1\r\nHo");
  EXPECT_EQ(header.ReadResponse()->status, 408);
  RawClient body(server.http_port());
  body.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{");
  EXPECT_EQ(body.ReadResponse()->status, 408);
  RawClient idle(server.http_port());
  EXPECT_EQ(idle.ReadToEnd(), "");
  // The control: a request may take longer than all of these.
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->WaitCancelled(absl::Milliseconds(200)));
  request->EmitText("a");
  EXPECT_TRUE(client.ReadUntil(R"("text":"a")"));
}

// ---- clients that leave ----

enum class Leave { kFin, kReset };
enum class When { kQueued, kMidStream, kNotStreaming };

class HttpLeaveTest : public testing::TestWithParam<std::tuple<Leave, When>> {};

TEST_P(HttpLeaveTest, AClientThatLeavesFreesItsWork) {
  const auto [leave, when] = GetParam();
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, when == When::kNotStreaming ? R"({"prompt": "hi"})" : kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  if (when != When::kQueued) request->EmitText("a");
  if (when == When::kMidStream) {
    ASSERT_TRUE(client.ReadUntil(R"("text":"a")"));
  }
  EXPECT_FALSE(request->cancelled());
  leave == Leave::kFin ? client.CloseWithFin() : client.CloseWithReset();
  EXPECT_TRUE(request->WaitCancelled()) << "no further token was needed to notice it";
  WaitFor([&] { return server->requests_in_flight() == 0; });
  EXPECT_THAT(Get(server.http_port(), "/metrics").body,
              HasSubstr("scion_requests_total{code=\"CANCELLED\",transport=\"http\"} 1"));
}

INSTANTIATE_TEST_SUITE_P(All, HttpLeaveTest,
                         testing::Combine(testing::Values(Leave::kFin, Leave::kReset),
                                          testing::Values(When::kQueued, When::kMidStream, When::kNotStreaming)));

constexpr int kFloodTokens = 8000;
constexpr char kFloodBody[] = R"({"prompt": "hi", "stream": true, "logprobs": 20})";

// More than socket buffers can hold: ten megabytes of events.
void EmitFlood(FakeRequest& request) {
  std::vector<TokenLogprob> top;
  for (int i = 0; i < 20; ++i) top.push_back({.token_id = 200 + i, .logprob = -static_cast<float>(i) / 3});
  for (int i = 0; i < kFloodTokens; ++i) request.Emit('a', -0.1f, top);
}

TEST(HttpTest, AClientThatStopsReadingIsDroppedAndDelaysNobody) {
  ServerOptions options = TestServer::DefaultOptions();
  options.http.limits.write_timeout = absl::Milliseconds(300);
  TestServer server(options);
  RawClient stalled(server.http_port(), /*receive_buffer_bytes=*/4096);
  stalled.Send(PostText(kCompletions, kFloodBody));
  const auto stalled_request = server.engine().Take();
  ASSERT_TRUE(stalled_request);
  EmitFlood(*stalled_request);

  RawClient reader(server.http_port());
  reader.Send(PostText(kCompletions, kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  for (int i = 0; i < 20; ++i) {
    request->EmitText("b");
    ASSERT_TRUE(reader.ReadUntil(R"("text":"b")"));
  }
  EXPECT_TRUE(stalled_request->WaitCancelled());
  EXPECT_FALSE(request->cancelled());
  request->Finish(FinishReason::kStop);
  EXPECT_TRUE(reader.ReadUntil("data: [DONE]"));
}

TEST(HttpTest, ASlowReaderGetsEverything) {
  TestServer server;
  RawClient client(server.http_port(), /*receive_buffer_bytes=*/4096);
  client.Send(PostText(kCompletions, kFloodBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  EmitFlood(*request);
  request->Finish(FinishReason::kLength);
  const auto response = client.ReadResponse();
  ASSERT_TRUE(response);
  // Counted, not matched: ten megabytes make no readable failure.
  constexpr std::string_view kText = "\"text\":\"";
  size_t characters = 0;
  for (size_t at = 0; (at = response->body.find(kText, at)) != std::string::npos;) {
    at += kText.size();
    characters += response->body.find('"', at) - at;
  }
  EXPECT_EQ(characters, static_cast<size_t>(kFloodTokens));
  EXPECT_TRUE(response->body.ends_with("data: [DONE]\n\n"));
}

TEST(HttpTest, Http10GetsAStreamThatEndsWithTheConnection) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) {
    request.EmitText("a");
    request.Finish(FinishReason::kStop);
  });
  RawClient client(server.http_port());
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nContent-Length: 32\r\n\r\n", kStreamBody));
  const std::string all = client.ReadToEnd();
  EXPECT_THAT(all, Not(HasSubstr("chunked")));
  EXPECT_TRUE(all.ends_with("data: [DONE]\n\n")) << all;
}

// ---- life cycle ----

TEST(HttpTest, BeforeTheModelIsThereTheServerLivesButIsNotReady) {
  TestServer server(TestServer::DefaultOptions(), /*open=*/false);
  EXPECT_EQ(Get(server.http_port(), "/healthz").status, 200);
  const RawResponse starting = Get(server.http_port(), "/readyz");
  EXPECT_EQ(starting.status, 503);
  EXPECT_EQ(starting.headers.count("retry-after"), 1u);
  EXPECT_EQ(Get(server.http_port(), "/v1/models").status, 503);
  const RawResponse refused = Post(server.http_port(), kCompletions, R"({"prompt": "a"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  server.Open();
  EXPECT_EQ(Get(server.http_port(), "/readyz").status, 200);
}

TEST(HttpTest, DrainingFinishesWhatRunsAndRefusesWhatIsNew) {
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, kStreamBody));
  const auto request = server.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("a");
  ASSERT_TRUE(client.ReadUntil(R"("text":"a")"));
  server->StartDraining();
  EXPECT_EQ(Get(server.http_port(), "/readyz").status, 503);
  EXPECT_EQ(Get(server.http_port(), "/healthz").status, 200);
  EXPECT_EQ(Post(server.http_port(), kCompletions, R"({"prompt": "a"})").status, 503);
  EXPECT_FALSE(server->WaitUntilIdle(absl::Milliseconds(50)));
  request->EmitText("b");
  request->Finish(FinishReason::kStop);
  EXPECT_TRUE(client.ReadUntil("data: [DONE]"));
  EXPECT_TRUE(server->WaitUntilIdle(absl::Seconds(10)));
}

TEST(HttpTest, StoppingCancelsWhatIsLeft) {
  std::shared_ptr<FakeRequest> request;
  TestServer server;
  RawClient client(server.http_port());
  client.Send(PostText(kCompletions, kStreamBody));
  request = server.engine().Take();
  ASSERT_TRUE(request);
  server->Stop();
  EXPECT_TRUE(request->cancelled());
  EXPECT_TRUE(client.IsClosedByServer());
}

TEST(HttpTest, APortInUseIsExplained) {
  TestServer server;
  ServerOptions options = TestServer::DefaultOptions();
  options.http.port = server.http_port();
  const auto http = Server::Start(options);
  EXPECT_EQ(http.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(http.status().message()),
              AllOf(HasSubstr(std::to_string(server.http_port())), HasSubstr("in use"), HasSubstr("--http-port")));
  options.http.port = 0;
  options.grpc.port = server.grpc_port();
  const auto grpc = Server::Start(options);
  EXPECT_EQ(grpc.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(grpc.status().message()),
              AllOf(HasSubstr(std::to_string(server.grpc_port())), HasSubstr("in use"), HasSubstr("--grpc-port")));
  options.grpc.port = 0;
  EXPECT_TRUE(Server::Start(options).ok()) << "the control";
  options.http.host = options.grpc.host = "no address";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(HttpTest, ManyConnectionsAtOnceEachHaveOneEnd) {
  TestServer server;
  server.engine().SetReply([](FakeRequest& request) {
    request.EmitText("abc");
    request.Finish(FinishReason::kStop);
  });
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<RawClient>(server.http_port()));
    clients.back()->Send(PostText(kCompletions, kStreamBody));
  }
  for (size_t i = 0; i < clients.size(); i += 3) clients[i]->CloseWithReset();
  for (size_t i = 0; i < clients.size(); ++i) {
    if (i % 3 == 0) continue;
    const auto response = clients[i]->ReadResponse();
    ASSERT_TRUE(response);
    EXPECT_TRUE(response->body.ends_with("data: [DONE]\n\n"));
  }
  clients.clear();
  WaitFor([&] { return server->requests_in_flight() == 0; });
}

}  // namespace
}  // namespace scion
