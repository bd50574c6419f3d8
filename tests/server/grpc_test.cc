// The gRPC side over real sockets, in front of an engine whose timing the test decides.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "scion/v1/inference.grpc.pb.h"
#include "tests/server/raw_client.h"
#include "tests/server/test_server.h"

namespace scion {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::shared_ptr<grpc::Channel> Connect(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), arguments);
}

class GrpcTest : public testing::Test {
 protected:
  static ServerOptions WithLimits(GrpcLimits limits) {
    ServerOptions options = TestServer::DefaultOptions();
    options.grpc.limits = limits;
    return options;
  }

  explicit GrpcTest(ServerOptions options = TestServer::DefaultOptions(), bool open = true)
      : server_(std::move(options), open), stub_(v1::Inference::NewStub(Connect(server_.grpc_port()))) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    request_.set_text("hi");
  }

  grpc::Status Ask(grpc::ClientContext& context) {
    auto reader = stub_->Generate(&context, request_);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }
  grpc::Status Ask() {
    grpc::ClientContext context;
    return Ask(context);
  }

  void WaitForNoCalls() {
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (server_->requests_in_flight() > 0) {
      ASSERT_LT(absl::Now(), limit);
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  // One answer of a method whose messages this test writes by hand.
  std::string RawCall(const std::string& method, const std::string& message) {
    grpc::GenericStub stub(Connect(server_.grpc_port()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    grpc::CompletionQueue queue;
    auto call = stub.PrepareCall(&context, method, &queue);
    void* tag;
    bool ok;
    auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
    call->StartCall(&call);
    EXPECT_TRUE(wait());
    grpc::Slice slice(message);
    call->Write(grpc::ByteBuffer(&slice, 1), &call);
    EXPECT_TRUE(wait());
    grpc::ByteBuffer answer;
    call->Read(&answer, &call);
    EXPECT_TRUE(wait());
    context.TryCancel();
    grpc::Status status;
    call->Finish(&status, &call);
    wait();
    std::vector<grpc::Slice> slices;
    std::string bytes;
    if (answer.Dump(&slices).ok()) {
      for (const grpc::Slice& s : slices) bytes.append(reinterpret_cast<const char*>(s.begin()), s.size());
    }
    return bytes;
  }

  // The answer of grpc.health.v1: HealthCheckResponse{status} is field 1, a number.
  std::string Health(const std::string& service) {
    const std::string message =
        service.empty() ? "" : absl::StrCat("\n", std::string(1, static_cast<char>(service.size())), service);
    return RawCall("/grpc.health.v1.Health/Check", message);
  }

  TestServer server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
};

constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

TEST_F(GrpcTest, GenerateStreamsTextTokensAndOneFinish) {
  request_.set_domain("cpp");
  request_.set_max_tokens(5);
  request_.set_logprobs(1);
  request_.set_ignore_eos(true);
  request_.set_cache_salt("a");
  request_.mutable_sampling()->set_temperature(0.25f);
  request_.mutable_sampling()->set_seed(9);
  (*request_.mutable_sampling()->mutable_logit_bias())[7] = -3;
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->PromptText(), "hi");
  EXPECT_EQ(request->request().domain, 1);
  EXPECT_EQ(request->request().max_new_tokens, 5);
  EXPECT_TRUE(request->request().ignore_eos);
  EXPECT_EQ(request->request().tenant, 0xca978112ca1bbdcau) << "the first bytes of the salt's SHA-256";
  EXPECT_EQ(request->request().sampling.temperature, 0.25f);
  EXPECT_EQ(request->request().sampling.seed, 9u);
  EXPECT_THAT(request->request().sampling.logit_bias, ElementsAre(testing::Pair(7, -3.0f)));
  request->Emit('a', -0.5f, {{.token_id = 'b', .logprob = -0.25f}});
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response)) << "a token is shown before the next is there";
  EXPECT_EQ(response.text(), "a");
  ASSERT_EQ(response.tokens_size(), 1);
  EXPECT_EQ(response.tokens(0).id(), 'a');
  EXPECT_EQ(response.tokens(0).logprob(), -0.5f);
  EXPECT_EQ(response.tokens(0).top_logprobs(0).token(), "b");
  EXPECT_FALSE(response.has_finish());
  request->EmitText("c");
  request->Finish(FinishReason::kLength);
  std::string text;
  int finishes = 0;
  while (reader->Read(&response)) {
    text += response.text();
    finishes += response.has_finish();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "c");
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(response.finish().reason(), v1::Finish::LENGTH);
  EXPECT_EQ(response.finish().usage().prompt_tokens(), 2);
  EXPECT_EQ(response.finish().usage().completion_tokens(), 2);
  EXPECT_EQ(response.finish().usage().cached_prompt_tokens(), kFakeCachedTokens);
}

TEST_F(GrpcTest, AStopStringEndsTheTextBeforeItAndTheWorkAtOnce) {
  request_.add_stop("END");
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->request().ignore_eos);
  request->EmitText("xENDy");
  EXPECT_TRUE(request->WaitCancelled());
  v1::GenerateResponse response;
  std::string text;
  while (reader->Read(&response)) text += response.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "x");
  EXPECT_EQ(response.finish().reason(), v1::Finish::STOP);
}

TEST_F(GrpcTest, AnErrorIsTheStatus) {
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("a");
  request->Finish(FinishReason::kError, absl::ResourceExhaustedError("no room"));
  v1::GenerateResponse response;
  std::string text;
  while (reader->Read(&response)) {
    text += response.text();
    EXPECT_FALSE(response.has_finish());
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(text, "a");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "no room");
}

TEST_F(GrpcTest, BadRequestsAreRefusedWithTheSameWordsAsOverHttp) {
  request_.set_domain("fr");
  grpc::Status status = Ask();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("en, cpp"));
  request_.set_domain("");
  request_.set_model("gpt");
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::NOT_FOUND);
  request_.set_model("demo@cpp");
  request_.set_domain("en");
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request_.clear_model();
  request_.mutable_sampling()->set_top_p(2);
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request_.clear_sampling();
  request_.set_text(std::string(70, 'a'));
  request_.set_max_tokens(1);
  status = Ask();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("64"), HasSubstr("71")));
  request_.clear_text();
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(server_.engine().submitted(), 0);
}

TEST_F(GrpcTest, TheDomainMayComeAsMetadata) {
  server_.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kStop); });
  context_.AddMetadata("x-scion-domain", "cpp");
  EXPECT_TRUE(Ask(context_).ok());
  EXPECT_EQ(server_.engine().Take()->request().domain, 1);
  grpc::ClientContext both;
  both.AddMetadata("x-scion-domain", "cpp");
  request_.set_domain("en");
  EXPECT_EQ(Ask(both).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcTest, ACallThatIsCancelledBeforeItsFirstTokenFreesItsWork) {
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->cancelled());
  context_.TryCancel();
  EXPECT_TRUE(request->WaitCancelled());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  WaitForNoCalls();
}

TEST_F(GrpcTest, ACallThatIsCancelledMidStreamFreesItsWork) {
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  request->EmitText("a");
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context_.TryCancel();
  EXPECT_TRUE(request->WaitCancelled());
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  WaitForNoCalls();
}

TEST_F(GrpcTest, AClientsDeadlineIsTheRequestsDeadline) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(300);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  auto reader = stub_->Generate(&context, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  EXPECT_LT(absl::AbsDuration(request->request().deadline - deadline), absl::Milliseconds(200));
  EXPECT_TRUE(request->WaitCancelled());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GrpcTest, ScoreGivesTheLogprobOfEveryTokenButTheFirst) {
  server_.engine().SetReply([](FakeRequest& request) {
    request.EmitScore('b', -0.5f);
    request.EmitScore('c', -1.25f);
    request.Finish(FinishReason::kScored);
  });
  v1::ScoreRequest request;
  request.set_text("abc");
  request.set_domain("cpp");
  request.set_cache_salt("a");
  v1::ScoreResponse response;
  const grpc::Status status = stub_->Score(&context_, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response.token_ids(), ElementsAre('a', 'b', 'c'));
  EXPECT_THAT(response.logprobs(), ElementsAre(-0.5f, -1.25f));
  EXPECT_EQ(response.total_logprob(), -1.75);
  EXPECT_EQ(response.domain(), "cpp");
  const auto submitted = server_.engine().Take();
  EXPECT_TRUE(submitted->request().score_prompt);
  EXPECT_EQ(submitted->request().tenant, 0xca978112ca1bbdcau);
  EXPECT_EQ(submitted->request().max_new_tokens, 0);
}

TEST_F(GrpcTest, AScoreThatIsCancelledFreesItsWork) {
  v1::ScoreRequest request;
  request.set_text("abc");
  v1::ScoreResponse response;
  grpc::Status status;
  std::thread call([&] { status = stub_->Score(&context_, request, &response); });
  const auto submitted = server_.engine().Take();
  EXPECT_TRUE(submitted);
  context_.TryCancel();
  EXPECT_TRUE(submitted && submitted->WaitCancelled());
  call.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  WaitForNoCalls();
}

TEST_F(GrpcTest, TokenizeDetokenizeAndListDomains) {
  v1::TokenizeRequest text;
  text.set_text("ab");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&context_, text, &ids).ok());
  EXPECT_THAT(ids.token_ids(), ElementsAre('a', 'b'));
  v1::DetokenizeRequest back;
  back.add_token_ids(0xE6);
  v1::DetokenizeResponse bytes;
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->Detokenize(&second, back, &bytes).ok());
  EXPECT_EQ(bytes.text(), "\xE6");
  back.add_token_ids(9999);
  grpc::ClientContext third;
  EXPECT_EQ(stub_->Detokenize(&third, back, &bytes).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::ListDomainsResponse domains;
  grpc::ClientContext fourth;
  ASSERT_TRUE(stub_->ListDomains(&fourth, {}, &domains).ok());
  EXPECT_EQ(domains.model(), "demo");
  EXPECT_EQ(domains.default_domain(), "en");
  ASSERT_EQ(domains.domains_size(), 2);
  EXPECT_EQ(domains.domains(1).name(), "cpp");
  EXPECT_EQ(domains.domains(1).generation(), 2u);
  EXPECT_EQ(domains.domains(1).generated_tokens(), 99u);
}

TEST_F(GrpcTest, ReflectionNamesTheService) {
  const std::string list_services = ":\x01*";  // field 7 of ServerReflectionRequest
  EXPECT_THAT(RawCall("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", list_services),
              HasSubstr("scion.v1.Inference"));
}

TEST_F(GrpcTest, AMessageThatIsTooLargeIsRefusedAndTheNextIsAnswered) {
  server_.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kStop); });
  request_.set_text(std::string(5 << 20, 'a'));
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(server_.engine().submitted(), 0);
  request_.set_text("hi");
  const grpc::Status control = Ask();
  EXPECT_TRUE(control.ok()) << control.error_code() << " " << control.error_message();
}

// gRPC closes the connection of a client that sends too much metadata; other connections do not notice.
TEST_F(GrpcTest, MetadataThatIsTooLargeIsRefusedAndOthersAreAnswered) {
  server_.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kStop); });
  EXPECT_TRUE(Ask().ok());
  const auto other_stub = v1::Inference::NewStub(Connect(server_.grpc_port()));
  grpc::ClientContext large;
  large.AddMetadata("x-large", std::string(20000, 'a'));
  auto reader = other_stub->Generate(&large, request_);
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_EQ(server_.engine().submitted(), 1) << "the control only";
  const grpc::Status control = Ask();
  EXPECT_TRUE(control.ok()) << control.error_code() << " " << control.error_message();
}

class UnopenedGrpcTest : public GrpcTest {
 protected:
  UnopenedGrpcTest() : GrpcTest(TestServer::DefaultOptions(), /*open=*/false) {}
};

TEST_F(UnopenedGrpcTest, HealthFollowsReadiness) {
  EXPECT_EQ(Health(""), kNotServing);
  EXPECT_EQ(Health("scion.v1.Inference"), kNotServing);
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::UNAVAILABLE);
  server_.Open();
  EXPECT_EQ(Health(""), kServing);
  EXPECT_EQ(Health("scion.v1.Inference"), kServing);
  server_->StartDraining();
  EXPECT_EQ(Health(""), kNotServing);
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcTest, DrainingLetsARunningCallEnd) {
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  server_->StartDraining();
  EXPECT_FALSE(server_->WaitUntilIdle(absl::Milliseconds(20)));
  request->EmitText("a");
  request->Finish(FinishReason::kStop);
  v1::GenerateResponse response;
  bool finished = false;
  while (reader->Read(&response)) finished = response.has_finish();
  EXPECT_TRUE(finished);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(server_->WaitUntilIdle(absl::Seconds(10)));
}

TEST_F(GrpcTest, StoppingEndsACallThatIsLeft) {
  auto reader = stub_->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  server_->Stop();
  EXPECT_TRUE(request->cancelled());
  EXPECT_FALSE(reader->Finish().ok());
}

class ImpatientGrpcTest : public GrpcTest {
 protected:
  static ServerOptions Impatient() {
    ServerOptions options = TestServer::DefaultOptions();
    options.request_timeout = absl::Seconds(100);
    return options;
  }
  ImpatientGrpcTest() : GrpcTest(Impatient()) {}
};

TEST_F(ImpatientGrpcTest, WithoutADeadlineOfTheClientTheServersIsTheRequests) {
  server_.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kStop); });
  EXPECT_TRUE(Ask().ok());
  const auto generated = server_.engine().Take();
  ASSERT_TRUE(generated);
  EXPECT_LE(generated->request().deadline, absl::Now() + absl::Seconds(100));
  v1::ScoreRequest score;
  score.set_text("abc");
  v1::ScoreResponse response;
  grpc::ClientContext no_deadline;
  EXPECT_TRUE(stub_->Score(&no_deadline, score, &response).ok());
  const auto scored = server_.engine().Take();
  ASSERT_TRUE(scored);
  EXPECT_LE(scored->request().deadline, absl::Now() + absl::Seconds(100));
  // The nearer of the two counts.
  grpc::ClientContext near;
  near.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(50));
  EXPECT_TRUE(stub_->Score(&near, score, &response).ok());
  const auto soon = server_.engine().Take();
  ASSERT_TRUE(soon);
  EXPECT_LT(soon->request().deadline, absl::Now() + absl::Seconds(75));
}

class TightGrpcTest : public GrpcTest {
 protected:
  TightGrpcTest() : GrpcTest(WithLimits({.max_calls = 2, .write_timeout = absl::Milliseconds(300)})) {}
};

TEST_F(TightGrpcTest, TooManyCallsAreRefused) {
  grpc::ClientContext first, second;
  auto one = stub_->Generate(&first, request_);
  auto two = stub_->Generate(&second, request_);
  ASSERT_TRUE(server_.engine().Take() && server_.engine().Take());
  EXPECT_EQ(Ask().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  first.TryCancel();
  second.TryCancel();
  one->Finish();
  two->Finish();
}

TEST_F(TightGrpcTest, AClientThatStopsReadingIsDroppedAndDelaysNobody) {
  grpc::ClientContext stalled_context;
  auto stalled = stub_->Generate(&stalled_context, request_);
  const auto stalled_request = server_.engine().Take();
  ASSERT_TRUE(stalled_request);
  std::vector<TokenLogprob> top(20, {.token_id = 'b', .logprob = -1});
  for (int i = 0; i < 50000; ++i) stalled_request->Emit('a', -0.1f, top);

  const auto other_stub = v1::Inference::NewStub(Connect(server_.grpc_port()));
  auto reader = other_stub->Generate(&context_, request_);
  const auto request = server_.engine().Take();
  ASSERT_TRUE(request);
  v1::GenerateResponse response;
  for (int i = 0; i < 20; ++i) {
    request->EmitText("b");
    ASSERT_TRUE(reader->Read(&response));
  }
  EXPECT_TRUE(stalled_request->WaitCancelled());
  EXPECT_FALSE(request->cancelled());
  request->Finish(FinishReason::kStop);
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  while (stalled->Read(&response)) {
  }
  EXPECT_EQ(stalled->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// ---- CVE-2023-1428: crafted headers of more than 8 KB aborted the process ----

std::string Literal(const std::string& name, const std::string& value) {
  auto text = [](const std::string& s) {
    std::string out;
    size_t n = s.size();
    if (n < 127) return std::string(1, static_cast<char>(n)) + s;
    out.push_back(127);
    for (n -= 127; n >= 128; n /= 128) out.push_back(static_cast<char>(n % 128 + 128));
    out.push_back(static_cast<char>(n));
    return out + s;
  };
  return std::string(1, '\0') + text(name) + text(value);
}

std::string Frame(char type, char flags, char stream, const std::string& payload) {
  const size_t n = payload.size();
  return {std::string({static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n), type, flags, 0, 0,
                       0, stream}) +
          payload};
}

TEST_F(GrpcTest, CraftedHeadersDoNotEndTheProcess) {
  constexpr size_t kFrameBytes = 16384;
  using Header = std::pair<std::string, std::string>;
  for (const Header& crafted : {Header{"te", "x"}, Header{":scheme", "x"}, Header{"grpclb_client_stats", "x"}}) {
    for (size_t bytes : {size_t{8000}, size_t{9000}, size_t{15000}, size_t{40000}}) {
      for (size_t pieces : {1, 8}) {
        std::string block = Literal(":method", "POST") + Literal(":path", "/scion.v1.Inference/ListDomains");
        if (crafted.first != ":scheme") block += Literal(":scheme", "http");
        block += Literal(crafted.first, crafted.second) + Literal("content-type", "application/grpc");
        for (size_t i = 0; i < pieces; ++i) block += Literal(absl::StrCat("x", i), std::string(bytes / pieces, 'y'));
        std::string data = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, "");
        for (size_t at = 0; at < block.size(); at += kFrameBytes) {
          data += Frame(at == 0 ? 1 : 9, at + kFrameBytes >= block.size() ? 4 : 0, 1, block.substr(at, kFrameBytes));
        }
        data += Frame(6, 0, 0, "12345678");  // a ping: its answer shows that the headers have been read
        RawClient client(server_.grpc_port());
        client.Send(data);
        client.ReadUntil("12345678");
      }
    }
  }
  server_.engine().SetReply([](FakeRequest& request) { request.Finish(FinishReason::kStop); });
  EXPECT_TRUE(Ask().ok());
}

}  // namespace
}  // namespace scion
