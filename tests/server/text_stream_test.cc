#include "server/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/fake_engine.h"

namespace scion {
namespace {

class TextStreamTest : public testing::Test {
 protected:
  TextStream Start(std::vector<std::string> stop = {}) {
    auto handle = engine_.Submit({.prompt = {1, 2}, .sampling = {}, .stop_token_ids = {}, .top_logprobs = {}});
    request_ = engine_.Take();
    return TextStream(*std::move(handle),
                      {.tokenizer = engine_.tokenizer(), .stop = std::move(stop), .prompt_tokens = 2});
  }

  FakeEngine engine_;
  std::shared_ptr<FakeRequest> request_;
};

TEST_F(TextStreamTest, GivesTextTokensAndOneFinishWithUsage) {
  TextStream stream = Start();
  EXPECT_FALSE(stream.TryNext());
  request_->EmitText("ab");
  std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(chunk->text, "ab");
  EXPECT_EQ(chunk->tokens.size(), 2u);
  EXPECT_FALSE(chunk->finish);
  request_->EmitText("c");
  request_->Finish(FinishReason::kLength);
  chunk = stream.TryNext();
  ASSERT_TRUE(chunk && chunk->finish);
  EXPECT_EQ(chunk->text, "c");
  EXPECT_EQ(chunk->finish->reason, TextFinish::Reason::kLength);
  EXPECT_EQ(chunk->finish->usage.prompt_tokens, 2);
  EXPECT_EQ(chunk->finish->usage.completion_tokens, 3);
  EXPECT_EQ(chunk->finish->usage.cached_prompt_tokens, kFakeCachedTokens);
  EXPECT_FALSE(stream.TryNext());
}

TEST_F(TextStreamTest, NeverShowsHalfACharacter) {
  TextStream stream = Start();
  request_->EmitText("\xE6");
  std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(chunk->text, "");
  EXPECT_EQ(chunk->tokens.size(), 1u);
  request_->EmitText("\xB0\xB4");
  EXPECT_EQ(stream.TryNext()->text, "\u6C34");
  request_->EmitText("\xE6");
  EXPECT_EQ(stream.TryNext()->text, "");
  request_->Finish(FinishReason::kLength);
  EXPECT_EQ(stream.TryNext()->text, "\uFFFD");
}

TEST_F(TextStreamTest, AStopStringAcrossTokensEndsTheTextBeforeItAndCancels) {
  TextStream stream = Start({"END"});
  request_->EmitText("xE");
  EXPECT_EQ(stream.TryNext()->text, "x");
  request_->EmitText("N");
  EXPECT_EQ(stream.TryNext()->text, "");
  EXPECT_FALSE(request_->cancelled());
  request_->EmitText("Dmore");
  const std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk && chunk->finish);
  EXPECT_EQ(chunk->text, "");
  EXPECT_EQ(chunk->finish->reason, TextFinish::Reason::kStop);
  EXPECT_EQ(chunk->finish->usage.completion_tokens, 4) << "the tokens up to the end of the stop string";
  EXPECT_TRUE(request_->cancelled());
  EXPECT_FALSE(stream.TryNext()) << "the engine's own end is not a second one";
}

TEST_F(TextStreamTest, WhatOnlyLookedLikeAStopStringIsTextAtTheEnd) {
  TextStream stream = Start({"END"});
  request_->EmitText("xEN");
  request_->Finish(FinishReason::kStop);
  const std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk && chunk->finish);
  EXPECT_EQ(chunk->text, "xEN");
}

TEST_F(TextStreamTest, AnErrorIsTheFinish) {
  TextStream stream = Start();
  request_->EmitText("x");
  request_->Finish(FinishReason::kError, absl::DeadlineExceededError("too late"));
  const std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk && chunk->finish);
  EXPECT_EQ(chunk->finish->reason, TextFinish::Reason::kError);
  EXPECT_EQ(chunk->finish->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(stream.TryNext());
}

TEST_F(TextStreamTest, LogprobsPassThroughAndOffsetsCountCharacters) {
  TextStream stream = Start();
  request_->EmitText("\xC3\xA9");  // one character of two tokens
  request_->Emit('b', -0.5f, {{.token_id = 'b', .logprob = -0.5f}, {.token_id = 'c', .logprob = -1.5f}});
  const std::optional<TextChunk> chunk = stream.TryNext();
  ASSERT_TRUE(chunk);
  ASSERT_EQ(chunk->tokens.size(), 3u);
  EXPECT_EQ(chunk->tokens[0].text_offset, 0);
  EXPECT_EQ(chunk->tokens[2].text_offset, 1);
  EXPECT_EQ(chunk->tokens[2].logprob, -0.5f);
  ASSERT_EQ(chunk->tokens[2].top.size(), 2u);
  EXPECT_EQ(chunk->tokens[2].top[1].token_id, 'c');
  EXPECT_FALSE(chunk->tokens[0].logprob);
}

TEST_F(TextStreamTest, DroppingTheStreamCancels) {
  { const TextStream stream = Start(); }
  EXPECT_TRUE(request_->cancelled());
}

}  // namespace
}  // namespace scion
