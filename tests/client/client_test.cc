#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "tests/client/fake_server.h"

namespace scion::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::unique_ptr<Client> ConnectTo(const FakeServer& server) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server.address());
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(Client, DeliversEveryMessageOfAStreamInOrderAndThenItsEnd) {
  FakeServer server;
  const auto client = ConnectTo(server);
  const auto stream = client->Generate(v1::GenerateRequest(), {});
  std::string text;
  int finishes = 0;
  v1::GenerateResponse response;
  while (stream->Next(&response)) {
    text += response.text();
    finishes += response.has_finish();
  }
  EXPECT_EQ(text, "hello");
  EXPECT_EQ(finishes, 1);
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_FALSE(stream->Next(&response));
}

TEST(Client, KeepsTheCodeAndTheTextOfAServersError) {
  FakeServer server;
  server.generate_status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue holds 4 requests");
  const auto client = ConnectTo(server);
  const absl::Status status = client->Generate(v1::GenerateRequest(), {})->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "the queue holds 4 requests");
}

TEST(Client, AStreamThatEndsWithoutAReasonIsAnError) {
  FakeServer server;
  server.send_finish = false;
  const auto client = ConnectTo(server);
  EXPECT_EQ(client->Generate(v1::GenerateRequest(), {})->Finish().code(), absl::StatusCode::kInternal);
}

TEST(Client, CancelSourceEndsARunningStreamOnBothSides) {
  FakeServer server;
  server.hang = true;
  const auto client = ConnectTo(server);
  CancelSource cancel;
  std::thread canceller([&] {
    server.WaitUntilHanging();
    EXPECT_TRUE(cancel.Cancel());
  });
  const auto stream = client->Generate(v1::GenerateRequest(), {.cancel = &cancel});
  EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kCancelled);
  canceller.join();
  while (server.cancelled() == 0) std::this_thread::yield();
}

TEST(Client, CancelSourceAlsoEndsCallsThatBeginLater) {
  FakeServer server;
  const auto client = ConnectTo(server);
  CancelSource cancel;
  EXPECT_FALSE(cancel.Cancel());  // nothing was in flight
  EXPECT_TRUE(client->ListDomains({}).ok());
  EXPECT_EQ(client->ListDomains({.cancel = &cancel}).status().code(), absl::StatusCode::kCancelled);
}

TEST(Client, DestroyingAStreamCancelsTheRequest) {
  FakeServer server;
  server.hang = true;
  const auto client = ConnectTo(server);
  {
    const auto stream = client->Generate(v1::GenerateRequest(), {});
    v1::GenerateResponse response;
    ASSERT_TRUE(stream->Next(&response));
  }
  while (server.cancelled() == 0) std::this_thread::yield();
}

TEST(Client, ATimeoutEndsACallThatHangs) {
  FakeServer server;
  server.hang = true;
  const auto client = ConnectTo(server);
  const auto stream = client->Generate(v1::GenerateRequest(), {.timeout = absl::Milliseconds(50)});
  EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(Client, WithoutAServerTheErrorNamesTheAddressAndWhatToTry) {
  std::string address;
  {
    FakeServer server;
    address = server.address();
  }
  const absl::Time start = absl::Now();
  const absl::Status status = Client::Connect(address, absl::Seconds(30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr(address), HasSubstr("moe-serve"), HasSubstr("--address"), HasSubstr("SCION_ADDRESS")));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10)) << "a refused connection must be told at once";
}

TEST(Client, UnaryCallsCarryRequestAndAnswer) {
  FakeServer server;
  const auto client = ConnectTo(server);
  v1::TokenizeRequest tokenize;
  tokenize.set_text("ab");
  tokenize.set_add_special(true);
  const auto tokens = client->Tokenize(tokenize, {});
  ASSERT_TRUE(tokens.ok());
  EXPECT_THAT(tokens->token_ids(), testing::ElementsAre(FakeServer::kBos, 'a', 'b'));

  v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids('x');
  const auto text = client->Detokenize(detokenize, {});
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(text->text(), "x");

  v1::ScoreRequest score;
  score.set_text("abc");
  const auto scored = client->Score(score, {});
  ASSERT_TRUE(scored.ok());
  EXPECT_EQ(scored->total_logprob(), -3);
  score.set_domain("none");
  EXPECT_EQ(client->Score(score, {}).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace scion::client
