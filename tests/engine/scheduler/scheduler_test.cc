#include "engine/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

namespace scion {
namespace {

constexpr int kBlock = 32;

class SchedulerTest : public testing::Test {
 protected:
  void Make(SchedulerLimits limits, int num_blocks) {
    limits_ = limits;
    cache_ = std::make_unique<KvCache>(*KvCache::Create({{"0.k", 2}}, kBlock, num_blocks));
    scheduler_ = std::make_unique<Scheduler>(limits, *cache_);
  }
  Sequence* AddPrompt(int tokens) {
    sequences_.push_back(std::make_unique<Sequence>());
    Sequence* s = sequences_.back().get();
    s->tokens.assign(static_cast<size_t>(tokens), 1);
    s->num_prompt_tokens = tokens;
    scheduler_->Add(s);
    return s;
  }
  // One step; every sequence whose chunk completes gets a new token, as a decoder would give it.
  std::vector<ScheduledChunk> Step() {
    const std::span<const ScheduledChunk> span = scheduler_->Schedule();
    std::vector<ScheduledChunk> chunks(span.begin(), span.end());
    int rows = 0;
    for (const ScheduledChunk& c : chunks) {
      EXPECT_EQ(c.row_begin, rows);
      EXPECT_GT(c.num_tokens, 0);
      EXPECT_LE(c.num_tokens, limits_.prefill_chunk_tokens);
      EXPECT_LE(c.sequence->num_computed + c.num_tokens, static_cast<int>(c.sequence->tokens.size()));
      EXPECT_GE(static_cast<int>(c.sequence->blocks.size()) * kBlock, c.sequence->num_computed + c.num_tokens);
      rows += c.num_tokens;
    }
    EXPECT_LE(rows, limits_.max_step_tokens);
    scheduler_->Complete();
    for (const ScheduledChunk& c : chunks) {
      if (c.completes) c.sequence->tokens.push_back(1);
    }
    return chunks;
  }
  static int RowsOf(const std::vector<ScheduledChunk>& chunks, const Sequence* s) {
    int rows = 0;
    for (const ScheduledChunk& c : chunks) rows += c.sequence == s ? c.num_tokens : 0;
    return rows;
  }

  SchedulerLimits limits_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST_F(SchedulerTest, PromptsArePrefilledInChunksUnderTheBudget) {
  Make({.max_step_tokens = 100, .prefill_chunk_tokens = 64, .max_running = 8, .max_waiting = 8}, 100);
  Sequence* a = AddPrompt(130);
  Sequence* b = AddPrompt(50);
  std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, a), 64);
  EXPECT_EQ(RowsOf(step, b), 36);
  step = Step();
  EXPECT_EQ(RowsOf(step, a), 64);
  EXPECT_EQ(RowsOf(step, b), 14);
  EXPECT_TRUE(step.back().completes);
  step = Step();
  EXPECT_EQ(RowsOf(step, a), 2);
  EXPECT_EQ(RowsOf(step, b), 1);
}

TEST_F(SchedulerTest, DecodingSequencesGoOnWhileAPromptIsPrefilled) {
  Make({.max_step_tokens = 32, .prefill_chunk_tokens = 32, .max_running = 16, .max_waiting = 8}, 100);
  std::vector<Sequence*> decoding;
  for (int i = 0; i < 8; ++i) decoding.push_back(AddPrompt(3));
  Step();
  Sequence* newcomer = AddPrompt(100);
  int steps = 0;
  while (newcomer->tokens.size() == 100) {
    const std::vector<ScheduledChunk> step = Step();
    for (Sequence* s : decoding) EXPECT_EQ(RowsOf(step, s), 1);
    EXPECT_EQ(RowsOf(step, newcomer), std::min(24, 100 - steps * 24));
    ASSERT_LT(++steps, 10);
  }
  EXPECT_EQ(steps, 5);  // ceil(100 / (32 - 8))
}

TEST_F(SchedulerTest, WithoutBlocksTheLastToArriveGivesWayAndTheOldestNever) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 8, .max_waiting = 8}, 3);
  Sequence* old = AddPrompt(31);
  Sequence* young = AddPrompt(31);
  Step();
  for (int i = 0; i < 40; ++i) Step();
  EXPECT_GT(scheduler_->preemptions(), 0u);
  EXPECT_GT(old->tokens.size(), young->tokens.size());
  EXPECT_EQ(old->tokens.size(), 31u + 41u);
}

TEST_F(SchedulerTest, NewSequencesComeInOnlyWhenTheirWholePromptFits) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 16, .max_running = 8, .max_waiting = 8}, 4);
  AddPrompt(3 * kBlock);
  Sequence* b = AddPrompt(2 * kBlock);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(RowsOf(Step(), b), 0);
  scheduler_->Remove(sequences_[0].get());
  EXPECT_EQ(cache_->blocks_in_use(), 0);
  EXPECT_EQ(RowsOf(Step(), b), 16);
}

TEST_F(SchedulerTest, RemovingFreesTheBlocksOfARunningAndOfAWaitingSequence) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 1, .max_waiting = 8}, 10);
  Sequence* a = AddPrompt(40);
  Sequence* b = AddPrompt(40);
  Step();
  EXPECT_EQ(cache_->blocks_in_use(), 2);
  scheduler_->Remove(b);
  scheduler_->Remove(a);
  EXPECT_EQ(cache_->blocks_in_use(), 0);
  EXPECT_EQ(scheduler_->num_running() + scheduler_->num_waiting(), 0);
  EXPECT_TRUE(Step().empty());
}

// Random arrivals, lengths and departures under a cache that is far too small: everybody ends, no block is lost, and
// no sequence ever enters a step with a token left out or computed twice since it was last preempted.
TEST_F(SchedulerTest, EverySequenceEndsWhateverComes) {
  std::mt19937 random(11);
  for (int round = 0; round < 30; ++round) {
    Make({.max_step_tokens = 40,
          .prefill_chunk_tokens = 1 + static_cast<int>(random() % 40),
          .max_running = 12,
          .max_waiting = 100},
         6);
    std::map<Sequence*, int> left;
    sequences_.clear();
    int to_come = 40;
    int steps = 0;
    while (to_come > 0 || !left.empty()) {
      if (to_come > 0 && random() % 2 == 0) {
        --to_come;
        const int prompt = 1 + static_cast<int>(random() % 90);
        left[AddPrompt(prompt)] = 1 + static_cast<int>(random() % (6 * kBlock - static_cast<unsigned>(prompt)));
      }
      for (const ScheduledChunk& c : Step()) {
        if (c.completes && --left[c.sequence] == 0) {
          scheduler_->Remove(c.sequence);
          left.erase(c.sequence);
        }
      }
      if (!left.empty() && random() % 50 == 0) {
        scheduler_->Remove(left.begin()->first);
        left.erase(left.begin());
      }
      ASSERT_LT(++steps, 100000) << "no progress";
    }
    EXPECT_EQ(cache_->blocks_in_use(), 0);
  }
}

}  // namespace
}  // namespace scion
