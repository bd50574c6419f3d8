// Continuous batching: chooses, step by step, which tokens of which sequences are computed next.
//
// Every step takes first the next token of each sequence that is decoding, then, under a budget of tokens, chunks of
// prompts: the domains take turns, in each the prompts that are being prefilled go before new ones. Chunks for which
// there is no time in one step pass the model's layers in some steps, a few in each (layered prefill,
// arXiv:2510.08055): then none is added to them, and the weights of a mixture's experts are read for all of their
// tokens once, not once for every step. A prompt's beginning that the prefix cache knows is passed over. Blocks of the
// KV cache are taken as they are needed; when none is left, the sequence that was let in last gives up its own and
// waits to be computed anew (the bits come out the same, so nobody notices but the clock). The one that was let in
// first is never preempted, so all end.
//
// Owned by the engine thread. Never allocates after construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/kv_cache/prefix_cache.h"
#include "engine/scheduler/domain_queues.h"
#include "engine/scheduler/sequence.h"
#include "engine/scheduler/sequence_blocks.h"

namespace scion {

// Tokens [sequence->num_computed, + num_tokens) of the sequence enter the step.
struct ScheduledChunk {
  Sequence* sequence;
  int row_begin;
  int num_tokens;
  // The chunk reaches the last token known, and the last layer: its logits choose the next one.
  bool completes;
  // Of a chunk that has passed some layers: where its first row was among the layered rows of the step before.
  int held_row;
};

struct ScheduledStep {
  std::span<const ScheduledChunk> chunks;  // in row order
  // The last so many pass layers [layer_begin, layer_end) only; the others all.
  int num_layered;
  int num_layered_rows;  // of these chunks
  int layer_begin;
  int layer_end;
};

// What a step with decoding sequences may take so that these don't wait too long.
struct TimelySteps {
  // So many tokens, those that decode among them, if each step's share of the layers is so many.
  absl::FunctionRef<int(int decode_tokens, int layers)> tokens;
  // So many of the layers that are left to the prompts in a step of so many tokens; at least 1.
  absl::FunctionRef<int(int decode_tokens, int tokens, int layers_left)> layers;
};

struct SchedulerLimits {
  int max_step_tokens = 512;
  // Of one prompt in one step, as long as other prompts want a part of the step too.
  int prefill_chunk_tokens = 256;
  int max_running = 256;
  // Prompt tokens that a step with decoding sequences takes whatever the time it may last: no prompt stands still.
  int min_prefill_tokens = 16;
  // Of the model; with 1, chunks pass it as a whole.
  int num_layers = 1;
  // Prompt tokens that pass the layers over some steps. They are enough for an expert's weights to be read for several
  // rows; who comes later waits for them, through no more steps than there are layers.
  int layered_tokens = 128;
};

class Scheduler {
 public:
  // max_running <= max_step_tokens, so that no decoding sequence is left out for want of budget, but one that had found
  // no block when prompts began to pass the layers, until these are through. prefixes: null for none.
  Scheduler(const SchedulerLimits& limits, int num_domains, KvCache& cache, PrefixCache* prefixes = nullptr);

  // Puts a new sequence behind all others of its domain.
  void Add(Sequence* sequence);
  // Takes a sequence out, wherever it is, and gives back its blocks.
  void Remove(Sequence* sequence);

  // Composes the next step; empty when there is nothing to do. A step with decoding sequences takes no more than is
  // timely, beyond min_prefill_tokens and a layer.
  ScheduledStep Schedule(const TimelySteps& timely);
  ScheduledStep Schedule() {
    return Schedule({.tokens = [this](int, int) { return limits_.max_step_tokens; },
                     .layers = [](int, int, int left) { return left; }});
  }
  // The step is computed: its tokens are in the cache, of its layered chunks in the layers before `layer_end`, which
  // may be sooner than scheduled.
  void Complete(int layer_end);
  void Complete() { Complete(layer_end_); }

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return num_waiting_ + static_cast<int>(preempted_.size()); }
  uint64_t preemptions() const { return preemptions_; }
  // Tokens of sequences that were let in: found in the prefix cache, and not found there.
  uint64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }
  uint64_t prefix_miss_tokens() const { return prefix_miss_tokens_; }
  uint64_t prefix_evictions() const { return blocks_.evictions(); }

 private:
  void ScheduleDecodes();
  // Of a step in which so many sequences decode.
  int Budget(int decode_tokens, const TimelySteps& timely) const;
  // may_let_in: false where a sequence has given way in this step; what it freed is for those that asked for it.
  void SchedulePrefills(int budget, bool may_let_in);
  // The sequence of the domain that may be let in next, if any. Those that gave way come back before anyone new.
  Sequence* Newcomer(const DomainQueues::Domain& domain);
  // False if the cache has no room for all the tokens that the sequence has.
  bool LetIn(Sequence* sequence);
  void Reuse(Sequence* sequence);
  void Preempt(Sequence* sequence);
  void GiveUpBlocks(Sequence* sequence);
  void Enter(Sequence* sequence, int num_tokens);

  const SchedulerLimits limits_;
  SequenceBlocks blocks_;
  DomainQueues domains_;
  std::vector<Sequence*> running_;    // in order of admission
  std::vector<Sequence*> preempted_;  // likewise
  std::vector<ScheduledChunk> step_;
  int step_rows_ = 0;
  // Of the step, as in ScheduledStep; between steps, layer_begin_ is how many layers between_layers_ have passed.
  int num_layered_ = 0;
  int layer_begin_ = 0;
  int layer_end_ = 0;
  std::vector<ScheduledChunk> between_layers_;
  int num_waiting_ = 0;
  uint64_t next_admission_ = 0;
  uint64_t preemptions_ = 0;
  uint64_t prefix_hit_tokens_ = 0;
  uint64_t prefix_miss_tokens_ = 0;
};

}  // namespace scion
