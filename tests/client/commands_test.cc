#include "client/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <thread>

#include "nlohmann/json.hpp"
#include "tests/client/fake_server.h"

namespace scion::client {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

class Commands : public testing::Test {
 protected:
  int Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    Terminal terminal{.in = in_, .out = out_, .err = err_};
    return RunCommandLine(std::move(arguments), server_.address(), terminal, cancel_);
  }
  json OutputJson() { return json::parse(out_.str(), nullptr, false); }

  FakeServer server_;
  CancelSource cancel_;
  std::istringstream in_;
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(Commands, GeneratePrintsTheTextAndNothingElse) {
  EXPECT_EQ(Run({"generate", "--prompt", "x"}), kExitDone);
  EXPECT_EQ(out_.str(), "hello\n");
  EXPECT_THAT(err_.str(), IsEmpty());
}

TEST_F(Commands, GenerateSendsEveryOption) {
  ASSERT_EQ(Run({"generate", "-d",          "beta",   "-p",     "once",
                 "-n",       "7",           "-t",     "0.5",    "--top-k",
                 "3",        "--top-p",     "0.9",    "--seed", "18446744073709551615",
                 "--stop",   "a",           "--stop", "b",      "--logprobs",
                 "2",        "--ignore-eos"}),
            kExitDone)
      << err_.str();
  const v1::GenerateRequest sent = server_.last_generate();
  EXPECT_EQ(sent.domain(), "beta");
  EXPECT_EQ(sent.text(), "once");
  EXPECT_EQ(sent.max_tokens(), 7);
  EXPECT_FLOAT_EQ(sent.sampling().temperature(), 0.5);
  EXPECT_EQ(sent.sampling().top_k(), 3);
  EXPECT_FLOAT_EQ(sent.sampling().top_p(), 0.9);
  EXPECT_EQ(sent.sampling().seed(), UINT64_MAX);
  EXPECT_THAT(sent.stop(), testing::ElementsAre("a", "b"));
  EXPECT_EQ(sent.logprobs(), 2);
  EXPECT_TRUE(sent.ignore_eos());
}

TEST_F(Commands, GenerateSendsNothingThatWasNotAsked) {
  ASSERT_EQ(Run({"generate", "-p", "once"}), kExitDone);
  const v1::GenerateRequest sent = server_.last_generate();
  EXPECT_FALSE(sent.has_max_tokens());
  EXPECT_FALSE(sent.has_logprobs());
  EXPECT_FALSE(sent.sampling().has_temperature());
  EXPECT_FALSE(sent.sampling().has_seed());
  EXPECT_EQ(sent.domain(), "");
}

TEST_F(Commands, GenerateReadsStandardInputWithoutAPrompt) {
  in_.str("from\nstdin");
  ASSERT_EQ(Run({"generate"}), kExitDone);
  EXPECT_EQ(server_.last_generate().text(), "from\nstdin");
  ASSERT_EQ(Run({"generate", "--token-ids", "5,6"}), kExitDone);
  EXPECT_THAT(server_.last_generate().token_ids().ids(), testing::ElementsAre(5, 6));
}

TEST_F(Commands, GenerateAsJsonHoldsTextTokensReasonAndUsage) {
  ASSERT_EQ(Run({"generate", "-p", "x", "--json", "--logprobs", "0"}), kExitDone);
  const json output = OutputJson();
  EXPECT_EQ(output["text"], "hello");
  EXPECT_EQ(output["finish_reason"], "length");
  EXPECT_EQ(output["usage"], (json{{"prompt_tokens", 3}, {"completion_tokens", 5}}));
  ASSERT_EQ(output["tokens"].size(), 5u);
  EXPECT_EQ(output["tokens"][0], (json{{"id", 'h'}, {"logprob", -0.5}}));
}

TEST_F(Commands, AServersErrorGoesToStderrAndExitsWithOne) {
  server_.generate_status = grpc::Status(grpc::StatusCode::NOT_FOUND, "no domain 'x': alpha, beta");
  EXPECT_EQ(Run({"generate", "-p", "x", "--json"}), kExitFailed);
  EXPECT_THAT(out_.str(), IsEmpty());
  EXPECT_THAT(err_.str(), HasSubstr("no domain 'x': alpha, beta"));
}

TEST_F(Commands, WrongUseExitsWithTwo) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{},
                                                    {"nonsense"},
                                                    {"generate", "--no-such-option"},
                                                    {"generate", "--max-tokens", "x"},
                                                    {"generate", "-p", "a", "--prompt-file", "b"},
                                                    {"score", "--text", "a", "--matrix", "b"},
                                                    {"domains", "extra"},
                                                    {"bench", "--max-seconds", "0"}}) {
    EXPECT_EQ(Run(arguments), kExitUsage) << testing::PrintToString(arguments);
    EXPECT_THAT(out_.str(), IsEmpty());
    EXPECT_THAT(err_.str(), Not(IsEmpty()));
  }
}

TEST_F(Commands, EveryVerbHasHelpWithAnExample) {
  EXPECT_EQ(Run({"--version"}), kExitDone);
  EXPECT_THAT(out_.str(), HasSubstr("moe-client "));
  EXPECT_EQ(Run({"--help"}), kExitDone);
  EXPECT_THAT(out_.str(), HasSubstr("Example"));
  for (const char* verb : {"generate", "score", "domains", "bench"}) {
    EXPECT_EQ(Run({verb, "--help"}), kExitDone);
    EXPECT_THAT(out_.str(), HasSubstr(std::string("moe-client ") + verb));
    EXPECT_THAT(out_.str(), HasSubstr("Example"));
  }
}

TEST_F(Commands, APromptThatIsNotUtf8IsRefusedBeforeItIsSent) {
  EXPECT_EQ(Run({"generate", "-p", "ab\xff"}), kExitFailed);
  EXPECT_THAT(err_.str(), HasSubstr("not UTF-8 at byte 2"));
  EXPECT_EQ(Run({"score", "--text", "ab\xff"}), kExitFailed);
  EXPECT_THAT(err_.str(), HasSubstr("not UTF-8 at byte 2"));
}

TEST_F(Commands, ScorePrintsEveryTokenAndTheSum) {
  ASSERT_EQ(Run({"score", "--text", "a\n"}), kExitDone);
  EXPECT_THAT(out_.str(), HasSubstr("256           -  <s>"));
  EXPECT_THAT(out_.str(), HasSubstr("97     -1.0000  a"));
  EXPECT_THAT(out_.str(), HasSubstr("10     -1.0000  \\n"));
  EXPECT_THAT(out_.str(), HasSubstr("domain alpha: 2 tokens, log-likelihood -2.0000, perplexity 2.718"));
  ASSERT_EQ(Run({"score", "--text", "a", "--totals"}), kExitDone);
  EXPECT_THAT(out_.str(), Not(HasSubstr("<s>")));
  ASSERT_EQ(Run({"score", "--text", "ab", "--domain", "beta", "--json"}), kExitDone);
  const json output = OutputJson();
  EXPECT_EQ(output["domain"], "beta");
  EXPECT_EQ(output["total_logprob"], -4);
  EXPECT_EQ(output["logprobs"], (json{-2, -2}));
  EXPECT_EQ(output["token_ids"], (json{256, 'a', 'b'}));
}

TEST_F(Commands, DomainsMarksTheDefault) {
  ASSERT_EQ(Run({"domains"}), kExitDone);
  EXPECT_THAT(out_.str(), HasSubstr("* alpha"));
  EXPECT_THAT(out_.str(), HasSubstr("  beta"));
  ASSERT_EQ(Run({"domains", "--json"}), kExitDone);
  EXPECT_EQ(OutputJson()["default_domain"], "alpha");
  EXPECT_EQ(OutputJson()["domains"][1]["name"], "beta");
}

TEST_F(Commands, BenchFailsIfARequestFailed) {
  ASSERT_EQ(Run({"bench", "-c", "2", "-r", "6", "--json"}), kExitDone) << err_.str();
  EXPECT_EQ(OutputJson()["requests"], 6);
  EXPECT_EQ(OutputJson()["output_tokens"], 30);
  EXPECT_TRUE(OutputJson()["ttft"]["p99_ms"].is_number());
  server_.fail_every = 3;
  EXPECT_EQ(Run({"bench", "-c", "1", "-r", "6", "--json"}), kExitFailed);
  EXPECT_EQ(OutputJson()["failed"], 2);
  EXPECT_TRUE(OutputJson()["ttft"]["p99_ms"].is_null());
  EXPECT_THAT(err_.str(), HasSubstr("2 of 6 requests failed"));
}

TEST_F(Commands, CancelEndsAStreamThatHangs) {
  server_.hang = true;
  std::thread canceller([&] {
    server_.WaitUntilHanging();
    cancel_.Cancel();
  });
  EXPECT_EQ(Run({"generate", "-p", "x"}), kExitFailed);
  canceller.join();
  EXPECT_THAT(err_.str(), HasSubstr("CANCELLED"));
}

}  // namespace
}  // namespace scion::client
