// Continuous batching: chooses, step by step, which tokens of which sequences are computed next.
//
// Every step takes, under a budget of tokens: first the next token of each sequence that is decoding, then chunks of
// prompts that are being prefilled, then new sequences in order of arrival. Blocks of the KV cache are taken as they
// are needed; when none is left, the sequence that arrived last gives up its own and waits to be computed anew (the
// bits come out the same, so nobody notices but the clock). The oldest sequence is never preempted, so all end.
//
// Owned by the engine thread. Never allocates after construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/kv_cache/kv_cache.h"

namespace scion {

// A request as the scheduler sees it. Owned by the caller, who adds and removes it.
struct Sequence {
  int domain = 0;
  // The prompt and what was generated; the caller appends. Reserved for all tokens that may ever be.
  std::vector<int32_t> tokens;
  int num_prompt_tokens = 0;
  bool wants_prompt_logits = false;  // of every prompt position, not only the last

  // The scheduler's own.
  uint64_t arrival = 0;
  int num_computed = 0;         // tokens whose keys and values are in the cache
  std::vector<int32_t> blocks;  // reserved for all blocks that may ever be
  bool running = false;
};

// Tokens [sequence->num_computed, + num_tokens) of the sequence enter the step.
struct ScheduledChunk {
  Sequence* sequence;
  int row_begin;
  int num_tokens;
  // The chunk reaches the last token known: its logits choose the next one.
  bool completes;
};

struct SchedulerLimits {
  int max_step_tokens = 512;
  int prefill_chunk_tokens = 256;
  int max_running = 256;
  int max_waiting = 1024;
};

class Scheduler {
 public:
  // max_running <= max_step_tokens, so that no decoding sequence is ever left out for want of budget.
  Scheduler(const SchedulerLimits& limits, KvCache& cache);

  // Puts a new sequence behind all others. At most max_waiting + max_running sequences at a time.
  void Add(Sequence* sequence);
  // Takes a sequence out, wherever it is, and frees its blocks.
  void Remove(Sequence* sequence);

  // Composes the next step; empty when there is nothing to do. Chunks are in row order.
  std::span<const ScheduledChunk> Schedule();
  // The step is computed: its tokens are in the cache.
  void Complete();

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  uint64_t preemptions() const { return preemptions_; }

 private:
  // Makes room in the cache for the sequence's tokens up to `num_tokens`, at the cost of sequences that arrived later.
  // False if the sequence itself would have to give way.
  bool Reserve(Sequence* sequence, int num_tokens, bool may_preempt);
  void Preempt(Sequence* sequence);
  void FreeBlocks(Sequence* sequence);
  void Schedule(Sequence* sequence, int num_tokens);

  const SchedulerLimits limits_;
  KvCache& cache_;
  std::vector<Sequence*> running_;  // in order of arrival
  std::vector<Sequence*> waiting_;  // likewise
  std::vector<ScheduledChunk> step_;
  int step_rows_ = 0;
  uint64_t next_arrival_ = 0;
  uint64_t preemptions_ = 0;
};

}  // namespace scion
