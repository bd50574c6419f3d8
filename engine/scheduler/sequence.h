// A request as the scheduler sees it, and lists of such.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kv_cache/prefix_cache.h"

namespace scion {

// Owned by the caller, who adds it to the scheduler and removes it.
struct Sequence {
  int domain = 0;
  uint64_t tenant = 0;  // only sequences of one tenant share what is in the prefix cache
  // The prompt and what was generated; the caller appends. Reserved for all tokens that may ever be.
  std::vector<int32_t> tokens;
  int num_prompt_tokens = 0;
  // The logits of every prompt position are wanted, not only the last's; those of the first num_scored are out already.
  bool wants_prompt_logits = false;
  int num_scored = 0;

  // The scheduler's own.
  enum class State : uint8_t { kWaiting, kRunning, kPreempted };
  State state = State::kWaiting;
  uint64_t admission = 0;          // in which order it was first let in
  int num_computed = 0;            // tokens whose keys and values are in the cache
  bool is_between_layers = false;  // some that come next have passed some layers
  std::vector<int32_t> blocks;     // reserved for all blocks that may ever be
  int num_stored = 0;              // of the blocks, those at the front that the prefix cache knows
  ContentId content{};             // of these
  Sequence* previous_in_list = nullptr;
  Sequence* next_in_list = nullptr;

  int num_left() const { return static_cast<int>(tokens.size()) - num_computed; }
};

// Sequences in the order in which they were pushed. A sequence is in one list at most.
class SequenceList {
 public:
  Sequence* front() const { return front_; }
  bool empty() const { return front_ == nullptr; }

  void PushBack(Sequence* s) {
    s->previous_in_list = back_;
    s->next_in_list = nullptr;
    (back_ != nullptr ? back_->next_in_list : front_) = s;
    back_ = s;
  }
  void Remove(Sequence* s) {
    (s->previous_in_list != nullptr ? s->previous_in_list->next_in_list : front_) = s->next_in_list;
    (s->next_in_list != nullptr ? s->next_in_list->previous_in_list : back_) = s->previous_in_list;
  }
  void Clear() { front_ = back_ = nullptr; }

 private:
  Sequence* front_ = nullptr;
  Sequence* back_ = nullptr;
};

}  // namespace scion
