#include "client/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/client/fake_server.h"

namespace scion::client {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Load : public testing::Test {
 protected:
  LoadResult Run(const LoadOptions& options) {
    const auto client = Client::Connect(server_.address());
    EXPECT_TRUE(client.ok()) << client.status();
    absl::StatusOr<LoadResult> result = RunLoad(**client, options, cancel_);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  FakeServer server_;
  CancelSource cancel_;
};

TEST_F(Load, CountsEveryRequestAndToken) {
  const LoadResult result = Run({.concurrency = 4, .requests = 20});
  EXPECT_EQ(result.requests, 20);
  EXPECT_EQ(result.failed, 0);
  EXPECT_EQ(result.output_tokens, 20 * 5);  // "hello"
  EXPECT_EQ(result.prompt_tokens, 20 * 3);
  EXPECT_EQ(result.ttft_seconds.size(), 20u);
  EXPECT_EQ(result.itl_seconds.size(), 20u * 4);
  EXPECT_TRUE(std::isfinite(Percentile(result.itl_seconds, 1)));
  EXPECT_LE(server_.most_at_once(), 4);
}

TEST_F(Load, AFailedRequestIsInfinitelySlowEvenIfItsFirstTokenCame) {
  server_.fail_every = 10;
  const LoadResult result = Run({.concurrency = 1, .requests = 20});
  EXPECT_EQ(result.failed, 2);
  EXPECT_EQ(std::count(result.ttft_seconds.begin(), result.ttft_seconds.end(), kInfinity), 2);
  EXPECT_EQ(std::count(result.itl_seconds.begin(), result.itl_seconds.end(), kInfinity), 2);
  EXPECT_EQ(Percentile(result.ttft_seconds, 0.99), kInfinity);
  EXPECT_TRUE(std::isfinite(Percentile(result.ttft_seconds, 0.50)));
  ASSERT_EQ(result.errors.size(), 1u);
  EXPECT_THAT(result.errors.begin()->first, testing::HasSubstr("the queue is full"));
  EXPECT_EQ(result.errors.begin()->second, 2);
}

TEST_F(Load, StopsByItselfWhenTheServerHangs) {
  server_.hang = true;
  const LoadResult result = Run({.concurrency = 2, .requests = 50, .total_timeout = absl::Milliseconds(200)});
  EXPECT_EQ(result.requests, 50);
  EXPECT_EQ(result.failed, 50);
  EXPECT_EQ(result.ttft_seconds.size(), 50u);
  EXPECT_LT(result.seconds, 30);
}

TEST_F(Load, TheSameSeedAsksTheSamePromptAndAnotherSeedAnother) {
  Run({.concurrency = 1, .requests = 1, .prompt_tokens = 9, .vocab_size = 100, .seed = 7});
  const v1::GenerateRequest first = server_.last_generate();
  Run({.concurrency = 1, .requests = 1, .prompt_tokens = 9, .vocab_size = 100, .seed = 7});
  EXPECT_EQ(server_.last_generate().SerializeAsString(), first.SerializeAsString());
  Run({.concurrency = 1, .requests = 1, .prompt_tokens = 9, .vocab_size = 100, .seed = 8});
  EXPECT_NE(server_.last_generate().SerializeAsString(), first.SerializeAsString());
  EXPECT_EQ(first.token_ids().ids_size(), 9);
  for (const int id : first.token_ids().ids()) EXPECT_TRUE(id >= 0 && id < 100) << id;
  EXPECT_TRUE(first.ignore_eos());
}

TEST_F(Load, AsksDomainsInTurn) {
  Run({.concurrency = 1, .requests = 2, .domains = {"alpha", "beta"}});
  EXPECT_EQ(server_.last_generate().domain(), "beta");
  Run({.concurrency = 1, .requests = 3, .domains = {"alpha", "beta"}});
  EXPECT_EQ(server_.last_generate().domain(), "alpha");
}

TEST_F(Load, RefusesOptionsThatMakeNoLoad) {
  const auto client = Client::Connect(server_.address());
  ASSERT_TRUE(client.ok());
  for (const LoadOptions& options :
       {LoadOptions{.concurrency = 0}, LoadOptions{.concurrency = 100000}, LoadOptions{.requests = 0},
        LoadOptions{.prompt_tokens = 0}, LoadOptions{.output_tokens = 0}, LoadOptions{.vocab_size = 0}}) {
    EXPECT_EQ(RunLoad(**client, options, cancel_).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(Percentile, IsTheNearestRank) {
  std::vector<double> values(100);
  std::iota(values.rbegin(), values.rend(), 1);  // 100 .. 1
  EXPECT_EQ(Percentile(values, 0.50), 50);
  EXPECT_EQ(Percentile(values, 0.99), 99);
  EXPECT_EQ(Percentile(values, 1), 100);
  EXPECT_EQ(Percentile({3}, 0.5), 3);
  EXPECT_EQ(Percentile({1, 2}, 0.5), 1);
  EXPECT_EQ(Percentile({}, 0.5), kInfinity);
  EXPECT_EQ(Percentile({1, kInfinity}, 0.99), kInfinity);
}

}  // namespace
}  // namespace scion::client
