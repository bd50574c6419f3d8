#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <optional>

namespace scion {

Scheduler::Scheduler(const SchedulerLimits& limits, KvCache& cache) : limits_(limits), cache_(cache) {
  running_.reserve(static_cast<size_t>(limits.max_running));
  waiting_.reserve(static_cast<size_t>(limits.max_running + limits.max_waiting));
  step_.reserve(static_cast<size_t>(limits.max_running));
}

void Scheduler::Add(Sequence* sequence) {
  sequence->arrival = next_arrival_++;
  waiting_.push_back(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  std::erase(sequence->running ? running_ : waiting_, sequence);
  FreeBlocks(sequence);
}

void Scheduler::FreeBlocks(Sequence* sequence) {
  for (int32_t block : sequence->blocks) cache_.Free(block);
  sequence->blocks.clear();
  sequence->num_computed = 0;
}

void Scheduler::Preempt(Sequence* sequence) {
  FreeBlocks(sequence);
  std::erase(running_, sequence);
  sequence->running = false;
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence,
                                   [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }),
                  sequence);
  ++preemptions_;
}

bool Scheduler::Reserve(Sequence* sequence, int num_tokens, bool may_preempt) {
  const size_t wanted = static_cast<size_t>(cache_.blocks_for(num_tokens));
  while (sequence->blocks.size() < wanted) {
    if (std::optional<int32_t> block = cache_.Allocate()) {
      sequence->blocks.push_back(*block);
      continue;
    }
    if (!may_preempt) return false;
    // The last to arrive gives way, unless it has been scheduled in this very step: then its rows are needed.
    Sequence* last = running_.back();
    const bool in_step =
        std::any_of(step_.begin(), step_.end(), [last](const ScheduledChunk& chunk) { return chunk.sequence == last; });
    if (last == sequence || in_step) return false;
    Preempt(last);
  }
  return true;
}

void Scheduler::Schedule(Sequence* sequence, int num_tokens) {
  step_.push_back({.sequence = sequence,
                   .row_begin = step_rows_,
                   .num_tokens = num_tokens,
                   .completes = sequence->num_computed + num_tokens == static_cast<int>(sequence->tokens.size())});
  step_rows_ += num_tokens;
}

std::span<const ScheduledChunk> Scheduler::Schedule() {
  step_.clear();
  step_rows_ = 0;
  const uint64_t preemptions_before = preemptions_;

  // Oldest first: preemption only ever shortens the part of the list that is still to come.
  for (const bool decoding : {true, false}) {
    for (size_t i = 0; i < running_.size() && step_rows_ < limits_.max_step_tokens; ++i) {
      Sequence* s = running_[i];
      const int left = static_cast<int>(s->tokens.size()) - s->num_computed;
      if ((left == 1) != decoding) continue;
      const int count =
          std::min({left, limits_.max_step_tokens - step_rows_, decoding ? 1 : limits_.prefill_chunk_tokens});
      if (Reserve(s, s->num_computed + count, /*may_preempt=*/true)) Schedule(s, count);
    }
  }
  // New sequences come in only while there is room for all they are known to need without taking anyone's; what a
  // preemption of this very step freed is for those that asked for it.
  while (!waiting_.empty() && static_cast<int>(running_.size()) < limits_.max_running &&
         step_rows_ < limits_.max_step_tokens && preemptions_ == preemptions_before) {
    Sequence* s = waiting_.front();
    const int count = std::min(
        {static_cast<int>(s->tokens.size()), limits_.max_step_tokens - step_rows_, limits_.prefill_chunk_tokens});
    if (!Reserve(s, static_cast<int>(s->tokens.size()), /*may_preempt=*/false)) {
      FreeBlocks(s);
      break;
    }
    waiting_.erase(waiting_.begin());
    s->running = true;
    running_.insert(std::upper_bound(running_.begin(), running_.end(), s,
                                     [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }),
                    s);
    Schedule(s, count);
  }
  return step_;
}

void Scheduler::Complete() {
  for (const ScheduledChunk& chunk : step_) chunk.sequence->num_computed += chunk.num_tokens;
  step_.clear();
}

}  // namespace scion
