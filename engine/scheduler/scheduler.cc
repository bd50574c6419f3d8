#include "engine/scheduler/scheduler.h"

#include <algorithm>

namespace scion {
namespace {

void InsertByAdmission(std::vector<Sequence*>& list, Sequence* sequence) {
  list.insert(std::upper_bound(list.begin(), list.end(), sequence,
                               [](const Sequence* a, const Sequence* b) { return a->admission < b->admission; }),
              sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, int num_domains, KvCache& cache, PrefixCache* prefixes)
    : limits_(limits), blocks_(cache, prefixes), domains_(num_domains) {
  running_.reserve(static_cast<size_t>(limits.max_running));
  preempted_.reserve(static_cast<size_t>(limits.max_running));
  step_.reserve(static_cast<size_t>(limits.max_running));
  between_layers_.reserve(static_cast<size_t>(limits.max_running));
}

void Scheduler::Add(Sequence* s) {
  s->state = Sequence::State::kWaiting;
  domains_.Of(*s).waiting.PushBack(s);
  ++num_waiting_;
}

void Scheduler::Remove(Sequence* s) {
  switch (s->state) {
    case Sequence::State::kWaiting:
      domains_.Of(*s).waiting.Remove(s);
      --num_waiting_;
      break;
    case Sequence::State::kRunning:
      std::erase(running_, s);
      break;
    case Sequence::State::kPreempted:
      std::erase(preempted_, s);
      break;
  }
  GiveUpBlocks(s);
}

void Scheduler::GiveUpBlocks(Sequence* s) {
  blocks_.Release(s);
  if (!s->is_between_layers) return;
  s->is_between_layers = false;
  std::erase_if(between_layers_, [s](const ScheduledChunk& chunk) { return chunk.sequence == s; });
}

void Scheduler::Preempt(Sequence* s) {
  GiveUpBlocks(s);
  std::erase(running_, s);
  s->state = Sequence::State::kPreempted;
  InsertByAdmission(preempted_, s);
  ++preemptions_;
}

void Scheduler::Enter(Sequence* s, int num_tokens) {
  step_.push_back({.sequence = s, .row_begin = 0, .num_tokens = num_tokens, .completes = false, .held_row = 0});
  step_rows_ += num_tokens;
}

void Scheduler::ScheduleDecodes() {
  int room = limits_.max_step_tokens;
  for (const ScheduledChunk& chunk : between_layers_) room -= chunk.num_tokens;
  // First admitted first: preemption only ever shortens the part of the list that is still to come.
  for (size_t i = 0; i < running_.size() && step_rows_ < room; ++i) {
    Sequence* s = running_[i];
    if (s->num_left() != 1 || s->is_between_layers) continue;
    bool has_room = blocks_.Reserve(s, static_cast<int>(s->tokens.size()));
    while (!has_room && running_.back() != s) {
      Preempt(running_.back());
      has_room = blocks_.Reserve(s, static_cast<int>(s->tokens.size()));
    }
    if (has_room) Enter(s, 1);
  }
}

Sequence* Scheduler::Newcomer(const DomainQueues::Domain& domain) {
  if (preempted_.empty()) return domain.waiting.front();
  return &domain == &domains_.Of(*preempted_.front()) ? preempted_.front() : nullptr;
}

void Scheduler::Reuse(Sequence* s) {
  const int reused = blocks_.Reuse(s);
  prefix_hit_tokens_ += static_cast<uint64_t>(reused);
  prefix_miss_tokens_ -= static_cast<uint64_t>(reused);
}

bool Scheduler::LetIn(Sequence* s) {
  const int reused = blocks_.Reuse(s);
  if (!blocks_.Reserve(s, static_cast<int>(s->tokens.size()))) {
    blocks_.Release(s);
    return false;
  }
  if (s->state == Sequence::State::kPreempted) {
    preempted_.erase(preempted_.begin());
  } else {
    domains_.Of(*s).waiting.Remove(s);
    --num_waiting_;
    s->admission = next_admission_++;
  }
  s->state = Sequence::State::kRunning;
  InsertByAdmission(running_, s);
  prefix_hit_tokens_ += static_cast<uint64_t>(reused);
  prefix_miss_tokens_ += static_cast<uint64_t>(s->num_left());
  return true;
}

void Scheduler::SchedulePrefills(int budget, bool may_let_in) {
  for (Sequence* s : running_) {
    if (s->num_left() > 1) domains_.Of(*s).prefills.PushBack(s);
  }
  while (step_rows_ < budget) {
    may_let_in = may_let_in && static_cast<int>(running_.size()) < limits_.max_running;
    DomainQueues::Domain* domain = domains_.Next(
        [&](const DomainQueues::Domain& d) { return !d.prefills.empty() || (may_let_in && Newcomer(d) != nullptr); });
    if (domain == nullptr) break;
    Sequence* s = domain->prefills.front();
    if (s != nullptr) {
      domain->prefills.Remove(s);
      Reuse(s);
    } else {
      s = Newcomer(*domain);
      // Whoever has its turn and finds no room is not overtaken: all others that are new wait with it.
      if (!LetIn(s)) {
        may_let_in = false;
        continue;
      }
    }
    const int count = std::min({s->num_left(), budget - step_rows_, limits_.prefill_chunk_tokens});
    Enter(s, count);
    domains_.Charge(*s, count);
  }
  domains_.ClearPrefills();
  // What nobody else wants makes the chunks longer.
  for (ScheduledChunk& chunk : step_) {
    const int more = std::min(budget - step_rows_, chunk.sequence->num_left() - chunk.num_tokens);
    if (more <= 0) continue;
    chunk.num_tokens += more;
    step_rows_ += more;
    domains_.Charge(*chunk.sequence, more);
  }
}

int Scheduler::Budget(int decode_tokens, const TimelySteps& timely) const {
  if (decode_tokens == 0) return limits_.max_step_tokens;
  const int least = std::min(decode_tokens + limits_.min_prefill_tokens, limits_.max_step_tokens);
  int tokens = timely.tokens(decode_tokens, limits_.num_layers);
  if (limits_.num_layers > 1) {
    tokens = std::max(tokens, std::min(decode_tokens + limits_.layered_tokens, timely.tokens(decode_tokens, 1)));
  }
  return std::clamp(tokens, least, limits_.max_step_tokens);
}

ScheduledStep Scheduler::Schedule(const TimelySteps& timely) {
  step_.clear();
  step_rows_ = 0;
  const uint64_t preemptions_before = preemptions_;
  ScheduleDecodes();
  const int decode_tokens = step_rows_;
  const size_t num_whole = step_.size();
  if (between_layers_.empty()) {
    layer_begin_ = 0;
    SchedulePrefills(Budget(decode_tokens, timely), /*may_let_in=*/preemptions_ == preemptions_before);
  }
  for (const ScheduledChunk& chunk : between_layers_) {
    Enter(chunk.sequence, chunk.num_tokens);
    step_.back().held_row = chunk.held_row;
  }
  layer_end_ = limits_.num_layers;
  if (decode_tokens > 0 && step_rows_ > decode_tokens) {
    const int left = limits_.num_layers - layer_begin_;
    layer_end_ = layer_begin_ + std::clamp(timely.layers(decode_tokens, step_rows_, left), 1, left);
  }
  const bool whole = layer_begin_ == 0 && layer_end_ == limits_.num_layers;
  num_layered_ = whole ? 0 : static_cast<int>(step_.size() - num_whole);
  int row = 0;
  for (size_t i = 0; i < step_.size(); ++i) {
    ScheduledChunk& chunk = step_[i];
    chunk.row_begin = row;
    chunk.completes =
        chunk.num_tokens == chunk.sequence->num_left() && (i < num_whole || layer_end_ == limits_.num_layers);
    row += chunk.num_tokens;
  }
  return {.chunks = step_,
          .num_layered = num_layered_,
          .num_layered_rows = whole ? 0 : step_rows_ - decode_tokens,
          .layer_begin = layer_begin_,
          .layer_end = layer_end_};
}

void Scheduler::Complete(int layer_end) {
  between_layers_.clear();
  const size_t num_whole = step_.size() - static_cast<size_t>(num_layered_);
  for (size_t i = 0; i < step_.size(); ++i) {
    ScheduledChunk& chunk = step_[i];
    chunk.sequence->is_between_layers = i >= num_whole && layer_end < limits_.num_layers;
    if (chunk.sequence->is_between_layers) {
      chunk.held_row = chunk.row_begin - step_[num_whole].row_begin;
      between_layers_.push_back(chunk);
    } else {
      chunk.sequence->num_computed += chunk.num_tokens;
      blocks_.Store(chunk.sequence);
    }
  }
  if (!between_layers_.empty()) layer_begin_ = layer_end;
  step_.clear();
}

}  // namespace scion
