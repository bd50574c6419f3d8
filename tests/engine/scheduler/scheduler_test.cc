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
  void Make(SchedulerLimits limits, int num_blocks, bool with_prefixes = false) {
    limits_ = limits;
    sequences_.clear();
    cache_ = std::make_unique<KvCache>(*KvCache::Create({{"0.k", 2}}, kBlock, num_blocks));
    prefixes_ = with_prefixes ? std::make_unique<PrefixCache>(kBlock, num_blocks) : nullptr;
    scheduler_ = std::make_unique<Scheduler>(limits, kDomains, *cache_, prefixes_.get());
    memory_.assign(static_cast<size_t>(num_blocks * kBlock), 0);
    held_.clear();
    held_layers_ = 0;
  }
  Sequence* AddTokens(std::vector<int32_t> tokens, int domain = 0, uint64_t tenant = 0) {
    sequences_.push_back(std::make_unique<Sequence>());
    Sequence* s = sequences_.back().get();
    s->domain = domain;
    s->tenant = tenant;
    s->num_prompt_tokens = static_cast<int>(tokens.size());
    s->tokens = std::move(tokens);
    scheduler_->Add(s);
    return s;
  }
  // Tokens that no other sequence has.
  Sequence* AddPrompt(int tokens, int domain = 0) {
    return AddTokens(Tokens(tokens, 1000 + static_cast<int32_t>(sequences_.size())), domain);
  }
  static std::vector<int32_t> Tokens(int count, int32_t id) {
    return std::vector<int32_t>(static_cast<size_t>(count), id);
  }
  // What a forward pass leaves behind at every position: a function of all that it depends on.
  static std::vector<uint64_t> Values(const Sequence& s) {
    std::vector<uint64_t> values;
    uint64_t value = static_cast<uint64_t>(s.domain) * 77 + s.tenant * 7 + 1;
    for (int32_t id : s.tokens) {
      value = (value ^ static_cast<uint64_t>(id)) * 0x9e3779b97f4a7c15;
      value ^= value >> 29;
      values.push_back(value);
    }
    return values;
  }
  uint64_t& MemoryAt(const Sequence& s, int position) {
    return memory_[static_cast<size_t>(s.blocks.at(static_cast<size_t>(position / kBlock)) * kBlock +
                                       position % kBlock)];
  }
  // A step whose rows pass all layers, or those of prompts as many as are timely, less those that they are cut short by
  // while it runs; every sequence whose chunk completes gets a new token, as a decoder would give it.
  std::vector<ScheduledChunk> Step(int timely_tokens = 1 << 20, int timely_layers = 1 << 20, int cut_short_by = 0) {
    const ScheduledStep step = scheduler_->Schedule(
        {.tokens = [&](int, int) { return timely_tokens; }, .layers = [&](int, int, int) { return timely_layers; }});
    std::vector<ScheduledChunk> chunks(step.chunks.begin(), step.chunks.end());
    const size_t num_whole = chunks.size() - static_cast<size_t>(step.num_layered);
    const bool is_to_end = step.layer_end == limits_.num_layers;
    const int layer_end =
        step.num_layered > 0 ? std::max(step.layer_begin + 1, step.layer_end - cut_short_by) : step.layer_end;
    ends_ = layer_end == limits_.num_layers;
    std::vector<HeldRow> layered;
    const auto still_held =
        std::count_if(held_.begin(), held_.end(), [](const HeldRow& row) { return row.first->is_between_layers; });
    int rows = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const ScheduledChunk& c = chunks[i];
      const Sequence& s = *c.sequence;
      EXPECT_EQ(c.row_begin, rows);
      EXPECT_GT(c.num_tokens, 0);
      EXPECT_LE(c.num_tokens, s.num_left());
      EXPECT_EQ(c.completes, c.num_tokens == s.num_left() && (i < num_whole || is_to_end));
      EXPECT_GE(static_cast<int>(s.blocks.size()) * kBlock, s.num_computed + c.num_tokens);
      rows += c.num_tokens;
      if (i >= num_whole) {
        EXPECT_EQ(step.layer_begin, still_held > 0 ? held_layers_ : 0);
        for (int t = 0; t < c.num_tokens; ++t) layered.push_back({&s, s.num_computed + t});
        // What a model would find among the rows that it holds.
        for (int t = 0; t < c.num_tokens && step.layer_begin > 0; ++t) {
          EXPECT_EQ(held_.at(static_cast<size_t>(c.held_row + t)), HeldRow(&s, s.num_computed + t));
        }
        if (!ends_) continue;
      }
      const std::vector<uint64_t> values = Values(s);
      for (int p = 0; p < s.num_computed + c.num_tokens; ++p) {
        if (p >= s.num_computed) MemoryAt(s, p) = values[static_cast<size_t>(p)];
      }
    }
    // All rows are written before any is read, and those of others may not have been touched.
    for (const ScheduledChunk& c : std::span(chunks).first(ends_ ? chunks.size() : num_whole)) {
      const std::vector<uint64_t> values = Values(*c.sequence);
      for (int p = 0; p < c.sequence->num_computed + c.num_tokens; ++p) {
        EXPECT_EQ(MemoryAt(*c.sequence, p), values[static_cast<size_t>(p)]) << "position " << p;
      }
    }
    EXPECT_LE(rows, limits_.max_step_tokens);
    EXPECT_EQ(step.num_layered_rows, static_cast<int>(layered.size()));
    if (still_held > 0) {
      EXPECT_EQ(static_cast<ptrdiff_t>(layered.size()), still_held);
    }
    held_ = std::move(layered);
    held_layers_ = ends_ ? 0 : layer_end;
    if (cut_short_by > 0) {
      scheduler_->Complete(layer_end);
    } else {
      scheduler_->Complete();
    }
    for (size_t i = 0; i < chunks.size(); ++i) {
      chunks[i].completes = chunks[i].completes && (i < num_whole || ends_);
      if (chunks[i].completes) chunks[i].sequence->tokens.push_back(1);
    }
    return chunks;
  }
  static int RowsOf(const std::vector<ScheduledChunk>& chunks, const Sequence* s) {
    int rows = 0;
    for (const ScheduledChunk& c : chunks) rows += c.sequence == s ? c.num_tokens : 0;
    return rows;
  }
  static int Rows(const std::vector<ScheduledChunk>& chunks) {
    return chunks.empty() ? 0 : chunks.back().row_begin + chunks.back().num_tokens;
  }
  static bool HasStarted(const Sequence* s) { return s->num_computed > 0; }

  static constexpr int kDomains = 4;
  SchedulerLimits limits_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<PrefixCache> prefixes_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<uint64_t> memory_;                    // [blocks, kBlock]
  using HeldRow = std::pair<const Sequence*, int>;  // and its position
  std::vector<HeldRow> held_;                       // the layered rows of the last step
  int held_layers_ = 0;                             // that they have passed
  bool ends_ = true;                                // the last step's rows had passed all layers after it
};

TEST_F(SchedulerTest, PromptsArePrefilledInChunksUnderTheBudget) {
  Make({.max_step_tokens = 100, .prefill_chunk_tokens = 64, .max_running = 8}, 100);
  Sequence* a = AddPrompt(130);
  Sequence* b = AddPrompt(50);
  std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, a), 64);
  EXPECT_EQ(RowsOf(step, b), 36);
  Sequence* c = AddPrompt(200);
  step = Step();
  EXPECT_EQ(RowsOf(step, a), 64);
  EXPECT_EQ(RowsOf(step, b), 14);
  EXPECT_EQ(RowsOf(step, c), 22);
  step = Step();
  EXPECT_EQ(RowsOf(step, a), 2);
  EXPECT_EQ(RowsOf(step, b), 1);
  // Nobody else wants the rest.
  EXPECT_EQ(RowsOf(step, c), 97);
}

TEST_F(SchedulerTest, AChunkGetsWhatNobodyElseWants) {
  Make({.max_step_tokens = 100, .prefill_chunk_tokens = 16, .max_running = 8}, 100);
  Sequence* a = AddPrompt(90);
  EXPECT_EQ(RowsOf(Step(), a), 90);
  Sequence* b = AddPrompt(300);
  Sequence* c = AddPrompt(20);
  const std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, a), 1);
  EXPECT_EQ(RowsOf(step, c), 16);
  EXPECT_EQ(RowsOf(step, b), 83);
}

// A decoding sequence waits for as long as its step takes, so prompts may take only what there is time for.
TEST_F(SchedulerTest, AStepWithDecodingSequencesStaysWithinWhatIsTimely) {
  Make({.max_step_tokens = 200, .prefill_chunk_tokens = 200, .max_running = 8, .min_prefill_tokens = 5}, 100);
  for (int i = 0; i < 3; ++i) AddPrompt(10);
  Sequence* first = AddPrompt(100);
  EXPECT_EQ(Rows(Step(20)), 130) << "nobody decodes yet";
  Sequence* prompt = AddPrompt(1000);
  std::vector<ScheduledChunk> step = Step(20);
  EXPECT_EQ(Rows(step), 20);
  EXPECT_EQ(RowsOf(step, first), 1);
  EXPECT_EQ(RowsOf(step, prompt), 16);
  step = Step(1);
  EXPECT_EQ(RowsOf(step, first), 1);
  EXPECT_EQ(RowsOf(step, prompt), 5) << "but no prompt stands still";
  EXPECT_EQ(Rows(Step(1000)), 200);
}

TEST_F(SchedulerTest, DecodingSequencesGoOnWhileAPromptIsPrefilled) {
  Make({.max_step_tokens = 32, .prefill_chunk_tokens = 32, .max_running = 16}, 100);
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
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 8}, 3);
  Sequence* old = AddPrompt(31);
  Sequence* young = AddPrompt(31);
  Step();
  for (int i = 0; i < 40; ++i) Step();
  EXPECT_GT(scheduler_->preemptions(), 0u);
  EXPECT_GT(old->tokens.size(), young->tokens.size());
  EXPECT_EQ(old->tokens.size(), 31u + 41u);
}

TEST_F(SchedulerTest, NewSequencesComeInOnlyWhenTheirWholePromptFits) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 16, .max_running = 8}, 4);
  AddPrompt(3 * kBlock);
  Sequence* b = AddPrompt(2 * kBlock);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(RowsOf(Step(), b), 0);
  scheduler_->Remove(sequences_[0].get());
  EXPECT_EQ(cache_->blocks_in_use(), 0);
  EXPECT_EQ(RowsOf(Step(), b), 64);
}

TEST_F(SchedulerTest, RemovingFreesTheBlocksOfARunningAndOfAWaitingSequence) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 1}, 10);
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

TEST_F(SchedulerTest, AFloodInOneDomainDelaysNoOther) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 32}, 1000);
  for (int i = 0; i < 200; ++i) AddPrompt(100, /*domain=*/0);
  for (int i = 0; i < 5; ++i) Step(40);
  Sequence* other = AddPrompt(100, /*domain=*/1);
  int steps = 0;
  for (; other->num_left() > 0 && other->tokens.size() == 100; ++steps) {
    Step(40);
    ASSERT_LT(steps, 20);
  }
  // Half of what a step has for prompts is the other domain's: 16 rows of it at least, as at most 8 decode by then.
  EXPECT_LE(steps, 8);
  EXPECT_GT(scheduler_->num_waiting(), 180);
}

TEST_F(SchedulerTest, DomainsShareTheBudgetByTokensNotByRequests) {
  Make({.max_step_tokens = 128, .prefill_chunk_tokens = 32, .max_running = 64}, 10000);
  for (int i = 0; i < 20; ++i) AddPrompt(1000, /*domain=*/0);
  for (int i = 0; i < 1000; ++i) AddPrompt(20, /*domain=*/2);
  int rows[kDomains] = {};
  for (int i = 0; i < 50; ++i) {
    for (const ScheduledChunk& c : Step()) {
      rows[c.sequence->domain] += c.num_tokens;
      if (c.completes) scheduler_->Remove(c.sequence);
    }
    EXPECT_LE(std::abs(rows[0] - rows[2]), 2 * 32) << "step " << i;
  }
}

TEST_F(SchedulerTest, WhoWantedNothingGainsNoClaim) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 32, .max_running = 64}, 10000);
  for (int i = 0; i < 30; ++i) AddPrompt(200, /*domain=*/0);
  for (int i = 0; i < 40; ++i) Step();
  for (int i = 0; i < 4; ++i) AddPrompt(1000, /*domain=*/1);
  int others = 0;
  int all = 0;
  for (int i = 0; i < 10; ++i) {
    for (const ScheduledChunk& c : Step()) {
      if (c.sequence->num_prompt_tokens < static_cast<int>(c.sequence->tokens.size()) - 1) continue;  // decodes
      others += c.sequence->domain == 1 ? c.num_tokens : 0;
      all += c.num_tokens;
    }
  }
  EXPECT_GT(all, 400);
  EXPECT_NEAR(others, all / 2, 32) << "the other domain has its half";
}

// Small ones that would fit come all the time, from both domains.
TEST_F(SchedulerTest, APromptThatFindsNoRoomIsNotOvertakenForEver) {
  for (int domain_of_the_others : {0, 1}) {
    Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 8}, 8);
    std::map<Sequence*, int> left;
    const auto add_small = [&] { left[AddPrompt(20, domain_of_the_others)] = 8; };
    const auto step = [&] {
      for (const ScheduledChunk& c : Step()) {
        if (!c.completes || !left.contains(c.sequence) || --left[c.sequence] > 0) continue;
        scheduler_->Remove(c.sequence);
        left.erase(c.sequence);
      }
    };
    for (int i = 0; i < 4; ++i) add_small();
    step();
    Sequence* large = AddPrompt(7 * kBlock);
    int steps = 0;
    for (; !HasStarted(large); ++steps) {
      add_small();
      step();
      ASSERT_LT(steps, 40) << "overtaken for ever";
    }
  }
}

TEST_F(SchedulerTest, WhoGaveWayComesBackBeforeAnyNewcomer) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 8}, 4);
  Sequence* old = AddPrompt(63);
  Sequence* young = AddPrompt(33, /*domain=*/1);
  while (scheduler_->preemptions() == 0) Step();
  ASSERT_FALSE(HasStarted(young));
  Sequence* newcomer = AddPrompt(5, /*domain=*/2);
  for (int i = 0; i < 10; ++i) Step();
  EXPECT_FALSE(HasStarted(newcomer));
  scheduler_->Remove(old);
  const std::vector<ScheduledChunk> step = Step();
  EXPECT_GT(RowsOf(step, young), 0);
  EXPECT_GT(RowsOf(step, newcomer), 0);
}

// ---- with a prefix cache ----

TEST_F(SchedulerTest, APromptTakesOverTheFullBlocksThatAnotherHasComputed) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 100, true);
  Sequence* first = AddTokens(Tokens(100, 7));
  Step();
  // While the first is still running.
  Sequence* second = AddTokens(Tokens(100, 7));
  std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, second), 100 - 3 * kBlock);
  EXPECT_EQ(cache_->blocks_in_use(), 5) << "three shared, and one each";
  EXPECT_EQ(scheduler_->prefix_hit_tokens(), 96u);
  EXPECT_EQ(scheduler_->prefix_miss_tokens(), 104u);
  // Removed in the middle of sharing, and after all others have gone.
  scheduler_->Remove(first);
  EXPECT_EQ(cache_->blocks_in_use(), 4);
  Step();
  scheduler_->Remove(second);
  EXPECT_EQ(cache_->blocks_in_use(), 0);
  EXPECT_EQ(cache_->blocks_kept(), 3);
  Sequence* third = AddTokens(Tokens(70, 7));
  EXPECT_EQ(RowsOf(Step(), third), 70 - 2 * kBlock);
}

TEST_F(SchedulerTest, TheLastTokenIsAlwaysComputed) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 100, true);
  AddTokens(Tokens(2 * kBlock, 7));
  Step();
  Sequence* same = AddTokens(Tokens(2 * kBlock, 7));
  Sequence* longer = AddTokens(Tokens(2 * kBlock + 1, 7));
  const std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, same), kBlock) << "only full blocks are shared, and of its two the last has the last token";
  EXPECT_EQ(RowsOf(step, longer), 1);
}

TEST_F(SchedulerTest, WhatWasGeneratedIsFoundAgain) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 100, true);
  Sequence* first = AddTokens(Tokens(20, 7));
  for (int i = 0; i < 60; ++i) Step();
  std::vector<int32_t> next_turn = first->tokens;
  scheduler_->Remove(first);
  next_turn.resize(next_turn.size() + 10, 9);
  Sequence* second = AddTokens(next_turn);
  EXPECT_EQ(RowsOf(Step(), second), static_cast<int>(next_turn.size()) - 2 * kBlock);
}

TEST_F(SchedulerTest, DomainsAndTenantsShareNothing) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 100, true);
  AddTokens(Tokens(70, 7), /*domain=*/1, /*tenant=*/5);
  Step();
  Sequence* domain = AddTokens(Tokens(70, 7), /*domain=*/2, /*tenant=*/5);
  Sequence* tenant = AddTokens(Tokens(70, 7), /*domain=*/1, /*tenant=*/6);
  Sequence* same = AddTokens(Tokens(70, 7), /*domain=*/1, /*tenant=*/5);
  const std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, domain), 70);
  EXPECT_EQ(RowsOf(step, tenant), 70);
  EXPECT_EQ(RowsOf(step, same), 70 - 2 * kBlock);
}

TEST_F(SchedulerTest, PromptsThatAreComputedAtOnceEndUpInTheSameBlocks) {
  Make({.max_step_tokens = 200, .prefill_chunk_tokens = 50, .max_running = 8}, 100, true);
  std::vector<Sequence*> all;
  for (int i = 0; i < 4; ++i) all.push_back(AddTokens(Tokens(150, 7)));
  while (std::any_of(all.begin(), all.end(), [](const Sequence* s) { return s->tokens.size() == 150; })) Step();
  EXPECT_EQ(cache_->blocks_in_use(), 4 + 4);
  EXPECT_EQ(scheduler_->prefix_hit_tokens() + scheduler_->prefix_miss_tokens(), 600u);
}

TEST_F(SchedulerTest, APromptInTheMiddleOfItsPrefillTakesOverWhatHasBeenComputedMeanwhile) {
  Make({.max_step_tokens = 100, .prefill_chunk_tokens = 50, .max_running = 8}, 100, true);
  Sequence* first = AddTokens(Tokens(150, 7));
  Sequence* second = AddTokens(Tokens(150, 7));
  Step();  // 50 of both
  scheduler_->Remove(second);
  second = nullptr;
  Sequence* third = AddTokens(Tokens(150, 7));
  std::vector<ScheduledChunk> step = Step();
  EXPECT_EQ(RowsOf(step, third), 50) << "behind the first block";
  EXPECT_EQ(RowsOf(step, first), 50);
  step = Step();  // the first has three blocks by now, the third 82 tokens
  EXPECT_EQ(RowsOf(step, first), 50);
  EXPECT_EQ(RowsOf(step, third), 50);
  EXPECT_EQ(third->num_computed, 96 + 50);
}

TEST_F(SchedulerTest, ASequenceWhosePromptIsScoredComputesEveryPositionOnce) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 100, true);
  AddTokens(Tokens(100, 7));
  Step();
  Sequence* scored = AddTokens(Tokens(100, 7));
  scored->wants_prompt_logits = true;
  EXPECT_EQ(RowsOf(Step(), scored), 100);
  // One that gave way when 70 of its scores were out.
  Sequence* again = AddTokens(Tokens(100, 7));
  again->wants_prompt_logits = true;
  again->num_scored = 70;
  EXPECT_EQ(RowsOf(Step(), again), 100 - 2 * kBlock);
}

TEST_F(SchedulerTest, WhoGaveWayFindsItsBlocksAgainUnlessTheyWereNeeded) {
  Make({.max_step_tokens = 128, .prefill_chunk_tokens = 128, .max_running = 8}, 5, true);
  Sequence* old = AddTokens(Tokens(62, 7));
  Sequence* young = AddTokens(Tokens(65, 8));
  Step();
  while (scheduler_->preemptions() == 0) Step();
  ASSERT_EQ(young->num_computed, 0);
  scheduler_->Remove(old);
  const int tokens = static_cast<int>(young->tokens.size());
  EXPECT_EQ(RowsOf(Step(), young), tokens - 2 * kBlock);
}

// The end of a kept text goes first: what is left of it can still be found.
TEST_F(SchedulerTest, UnderPressureTextsLoseTheirEndsFirstAndTheOldestGoFirst) {
  Make({.max_step_tokens = 512, .prefill_chunk_tokens = 512, .max_running = 8}, 8, true);
  for (int32_t id : {7, 8}) {
    Sequence* s = AddTokens(Tokens(3 * kBlock + 1, id));
    Step();
    scheduler_->Remove(s);
  }
  EXPECT_EQ(cache_->blocks_kept(), 6);
  Sequence* needs_four = AddTokens(Tokens(3 * kBlock + 1, 9));
  Step();
  scheduler_->Remove(needs_four);
  EXPECT_EQ(scheduler_->prefix_evictions(), 2u);
  Sequence* oldest = AddTokens(Tokens(3 * kBlock + 1, 7));
  EXPECT_EQ(RowsOf(Step(), oldest), 2 * kBlock + 1) << "one block of it is left, and used";
  scheduler_->Remove(oldest);
}

// Random arrivals, lengths and departures under a cache that is far too small: everybody ends, no block is lost, and
// no sequence ever enters a step without what its earlier tokens left behind (Step() sees to that). With a prefix
// cache, many begin alike.
TEST_F(SchedulerTest, EverySequenceEndsWhateverComes) {
  std::mt19937 random(11);
  uint64_t preemptions = 0, hits = 0, evictions = 0, layered_steps = 0;
  for (int round = 0; round < 60; ++round) {
    const bool with_prefixes = round % 2 == 1;
    Make({.max_step_tokens = 40,
          .prefill_chunk_tokens = 1 + static_cast<int>(random() % 40),
          .max_running = 12,
          .min_prefill_tokens = 1 + static_cast<int>(random() % 5),
          .num_layers = round % 3 == 0 ? 1 : 2 + static_cast<int>(random() % 5),
          .layered_tokens = 1 + static_cast<int>(random() % 40)},
         6, with_prefixes);
    std::map<Sequence*, int> left;
    int to_come = 40;
    int steps = 0;
    while (to_come > 0 || !left.empty()) {
      if (to_come > 0 && random() % 2 == 0) {
        --to_come;
        const int prompt = 1 + static_cast<int>(random() % 90);
        std::vector<int32_t> tokens = Tokens(prompt, 2);
        for (size_t i = kBlock; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(random() % 2);
        left[AddTokens(tokens, static_cast<int>(random() % 2))] =
            1 + static_cast<int>(random() % (6 * kBlock - static_cast<unsigned>(prompt)));
      }
      for (const ScheduledChunk& c : Step(1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 4),
                                          static_cast<int>(random() % 3))) {
        if (c.completes && --left[c.sequence] == 0) {
          scheduler_->Remove(c.sequence);
          left.erase(c.sequence);
        }
      }
      layered_steps += !ends_;
      if (!left.empty() && random() % 50 == 0) {
        scheduler_->Remove(left.begin()->first);
        left.erase(left.begin());
      }
      ASSERT_LT(++steps, 100000) << "no progress";
    }
    EXPECT_EQ(cache_->blocks_in_use(), 0);
    EXPECT_EQ(scheduler_->num_running() + scheduler_->num_waiting(), 0);
    if (with_prefixes) {
      EXPECT_EQ(prefixes_->size(), cache_->blocks_kept());
    }
    preemptions += scheduler_->preemptions();
    hits += scheduler_->prefix_hit_tokens();
    evictions += scheduler_->prefix_evictions();
  }
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(evictions, 100u);
  EXPECT_GT(layered_steps, 1000u);
}

// ---- layer by layer ----

// Ten layers, four in a step: the prompts' rows pass them in three steps, while the others decode.
TEST_F(SchedulerTest, PromptsPassAFewLayersAStepWhileOthersDecode) {
  Make({.max_step_tokens = 200, .prefill_chunk_tokens = 50, .max_running = 8, .num_layers = 10, .layered_tokens = 100},
       100);
  Sequence* decoding = AddPrompt(5);
  Step(20, 4);
  EXPECT_TRUE(ends_) << "nobody waits for a step without decodes";
  Sequence* a = AddPrompt(70);
  Sequence* b = AddPrompt(80);
  for (int layers : {4, 8, 10}) {
    const std::vector<ScheduledChunk> step = Step(101, 4);
    EXPECT_EQ(RowsOf(step, decoding), 1);
    EXPECT_EQ(RowsOf(step, a), 50);
    EXPECT_EQ(RowsOf(step, b), 50);
    EXPECT_EQ(held_layers_, layers % 10);
    EXPECT_EQ(a->num_computed, layers == 10 ? 50 : 0);
  }
  Sequence* c = AddPrompt(60);
  std::vector<ScheduledChunk> step = Step(101, 4);
  EXPECT_EQ(RowsOf(step, a), 20);
  EXPECT_EQ(RowsOf(step, b), 30);
  EXPECT_EQ(RowsOf(step, c), 50);
  Sequence* late = AddPrompt(10);
  step = Step(101, 4);
  EXPECT_EQ(RowsOf(step, late), 0) << "which would be behind the others by four layers";
  // One of them goes in the middle of it, and so does the last that decodes: then nobody waits.
  scheduler_->Remove(b);
  scheduler_->Remove(decoding);
  step = Step(101, 4);
  EXPECT_TRUE(ends_);
  EXPECT_EQ(RowsOf(step, a), 20);
  EXPECT_EQ(RowsOf(step, b), 0);
  EXPECT_EQ(RowsOf(step, c), 50);
  step = Step(101, 4);
  EXPECT_EQ(RowsOf(step, a), 1);
  EXPECT_EQ(RowsOf(step, c), 10);
  EXPECT_EQ(RowsOf(step, late), 10);
}

// Planned to the last layer, cut short before it: what is left follows, and nobody has a token too early.
TEST_F(SchedulerTest, AStepThatRunsLateLeavesLayersToTheNext) {
  Make({.max_step_tokens = 200, .prefill_chunk_tokens = 50, .max_running = 8, .num_layers = 10, .layered_tokens = 100},
       100);
  AddPrompt(5);
  Step();
  Sequence* a = AddPrompt(50);
  Step(51, 8, /*cut_short_by=*/3);
  EXPECT_EQ(held_layers_, 5);
  Step(51, 8, /*cut_short_by=*/1);
  EXPECT_EQ(held_layers_, 9);
  EXPECT_EQ(a->num_computed, 0);
  EXPECT_EQ(a->num_left(), 50);
  Step(51, 8, /*cut_short_by=*/3);
  EXPECT_TRUE(ends_) << "one layer at least";
  EXPECT_EQ(a->num_computed, 50);
  EXPECT_EQ(a->num_left(), 1);
}

// What may pass all layers in one step is not made less by what may pass them one by one.
TEST_F(SchedulerTest, AsManyTokensAsAreTimelyEitherWay) {
  for (int whole : {30, 90}) {
    Make({.max_step_tokens = 200, .prefill_chunk_tokens = 200, .max_running = 8, .num_layers = 4, .layered_tokens = 60},
         100);
    AddPrompt(5);
    Step();
    Sequence* prompt = AddPrompt(150);
    const ScheduledStep step =
        scheduler_->Schedule({.tokens = [&](int, int layers) { return layers == 4 ? whole : 120; },
                              .layers = [&](int, int, int) { return 4; }});
    EXPECT_EQ(step.chunks.back().sequence, prompt);
    EXPECT_EQ(step.chunks.back().num_tokens, whole == 30 ? 60 : 89);
  }
}

// The last one let in decodes and finds no block, until another's prompt goes; by then a step is full without it.
TEST_F(SchedulerTest, WhoFindsABlockWhileOthersAreBetweenLayersWaitsForRoomInTheStep) {
  Make({.max_step_tokens = 10, .prefill_chunk_tokens = 8, .max_running = 8, .min_prefill_tokens = 1, .num_layers = 4},
       11);
  for (int i = 0; i < 2; ++i) AddPrompt(5);
  Step();
  Sequence* prompts[] = {AddPrompt(100, /*domain=*/0), AddPrompt(100, /*domain=*/2)};
  for (int i = 0; i < 2; ++i) Step();
  Sequence* last = AddPrompt(29, /*domain=*/1);
  for (int steps = 0; last->num_computed < kBlock; ++steps) {
    Step();
    ASSERT_LT(steps, 25);
  }
  ASSERT_EQ(cache_->blocks_in_use(), 11);
  const std::vector<ScheduledChunk> step = Step(10, 1);
  ASSERT_EQ(Rows(step), 10);
  ASSERT_EQ(step.size(), 3u) << "two decode, and one prompt passes the first layer";
  scheduler_->Remove(step[2].sequence == prompts[0] ? prompts[1] : prompts[0]);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(RowsOf(Step(10, 1), last), 0);
  EXPECT_EQ(RowsOf(Step(10, 1), last), 1);
}

TEST_F(SchedulerTest, WhoGivesWayBetweenLayersBeginsAnew) {
  Make({.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 8, .num_layers = 100}, 3);
  Sequence* old = AddPrompt(31);
  Step();
  Sequence* young = AddPrompt(60);
  while (scheduler_->preemptions() == 0) {
    Step(64, 1);
    ASSERT_EQ(young->num_computed, 0);
    ASSERT_LT(old->tokens.size(), 90u);
  }
  EXPECT_FALSE(young->is_between_layers);
  EXPECT_EQ(held_.size(), 0u);
  scheduler_->Remove(old);
  EXPECT_EQ(RowsOf(Step(64, 1), young), 60);
}

}  // namespace
}  // namespace scion
