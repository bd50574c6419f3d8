#include "client/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/client/fake_server.h"

namespace scion::client {
namespace {

class Perplexity : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server_.address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    directory_ =
        std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }

  void Write(const std::string& name, const std::string& content) { std::ofstream(directory_ / name) << content; }

  FakeServer server_;
  std::unique_ptr<Client> client_;
  std::filesystem::path directory_;
};

TEST_F(Perplexity, WindowsBeginWithBosAndTogetherHoldEveryTokenOnce) {
  const auto windows = MakeWindows(*client_, "abcdefg", {.window_tokens = 4}, {});
  ASSERT_TRUE(windows.ok()) << windows.status();
  constexpr int kBos = FakeServer::kBos;
  EXPECT_EQ(*windows, (std::vector<std::vector<int32_t>>{{kBos, 'a', 'b', 'c'}, {kBos, 'd', 'e', 'f'}, {kBos, 'g'}}));
  EXPECT_TRUE(MakeWindows(*client_, "", {.window_tokens = 4}, {})->empty());
  EXPECT_EQ(*MakeWindows(*client_, "ab", {.window_tokens = 4, .prefix = "x"}, {}),
            (std::vector<std::vector<int32_t>>{{'x', 'a', 'b'}}));
  EXPECT_EQ(*MakeWindows(*client_, "ab", {.window_tokens = 4, .prefix = ""}, {}),
            (std::vector<std::vector<int32_t>>{{'a', 'b'}}));
  EXPECT_EQ(MakeWindows(*client_, "abc", {.window_tokens = 1}, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Perplexity, IsTheExponentialOfTheMeanNegativeLogLikelihood) {
  EXPECT_DOUBLE_EQ((Likelihood{.scored_tokens = 4, .total_logprob = -4 * std::log(10.0)}).perplexity(), 10);
  EXPECT_TRUE(std::isnan(Likelihood{}.perplexity()));
}

TEST_F(Perplexity, MatrixHasTheOwnDomainOnTheDiagonalAndItsAdvantage) {
  Write("beta.jsonl", "{\"text\": \"bcd\"}\n{\"text\": \"bb\"}\n");
  Write("alpha.jsonl", "{\"text\": \"axy\"}\n\n");
  Write("README.md", "not a text");
  const auto matrix = MeasurePerplexityMatrix(*client_, directory_, {}, {});
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_THAT(matrix->texts, testing::ElementsAre("alpha", "beta"));
  EXPECT_THAT(matrix->domains, testing::ElementsAre("alpha", "beta"));
  // The fake's log-likelihood is -1 a token under the own domain and -2 under the other.
  EXPECT_DOUBLE_EQ(matrix->cells[0][0].perplexity(), std::exp(1.0));
  EXPECT_DOUBLE_EQ(matrix->cells[0][1].perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(matrix->cells[1][0].perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(matrix->cells[1][1].perplexity(), std::exp(1.0));
  EXPECT_EQ(matrix->cells[0][0].scored_tokens, 3);
  EXPECT_EQ(matrix->cells[1][1].scored_tokens, 5);
  EXPECT_DOUBLE_EQ(matrix->AdvantageOfOwnDomain(0), std::exp(1.0));
  EXPECT_DOUBLE_EQ(matrix->AdvantageOfOwnDomain(1), std::exp(1.0));
}

TEST_F(Perplexity, MatrixRefusesWhatItCannotReadAndNamesIt) {
  const auto measure = [&] { return MeasurePerplexityMatrix(*client_, directory_, {}, {}).status(); };
  EXPECT_EQ(measure().code(), absl::StatusCode::kNotFound);
  Write("alpha.jsonl", "{\"text\": \"a\"}\n");
  EXPECT_TRUE(measure().ok());
  Write("gamma.jsonl", "{\"text\": \"a\"}\n");
  EXPECT_THAT(std::string(measure().message()), testing::HasSubstr("gamma.jsonl"));
  std::filesystem::remove(directory_ / "gamma.jsonl");
  for (const char* line : {"{\"text\": 1}", "[]", "{\"txt\": \"a\"}", "{", "\"a\""}) {
    Write("beta.jsonl", std::string("{\"text\": \"b\"}\n") + line + "\n");
    EXPECT_EQ(measure().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(measure().message()), testing::HasSubstr("beta.jsonl:2")) << line;
  }
}

}  // namespace
}  // namespace scion::client
