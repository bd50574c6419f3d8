// The prompts of every domain, and whose turn it is: that of the domain which has had the fewest of its prompts' tokens
// computed. Within a domain, first come first served. A domain that had nothing to compute for a while starts level
// with the others: time in which it wanted nothing gives it no claim. (Start-time fair queueing.)
//
// Owned by the engine thread. Never allocates after construction.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/scheduler/sequence.h"

namespace scion {

class DomainQueues {
 public:
  struct Domain {
    uint64_t served_tokens = 0;
    SequenceList waiting;   // never let in yet
    SequenceList prefills;  // running, with prompt tokens left, and not in the step yet; filled anew in every step
  };

  explicit DomainQueues(int num_domains) : domains_(static_cast<size_t>(num_domains)) {}

  Domain& Of(const Sequence& s) { return domains_[static_cast<size_t>(s.domain)]; }
  void ClearPrefills() {
    for (Domain& d : domains_) d.prefills.Clear();
  }
  void Charge(const Sequence& s, int tokens) { Of(s).served_tokens += static_cast<uint64_t>(tokens); }

  // The domain whose turn it is of those for which has_work(domain); null if there is none.
  template <typename HasWork>
  Domain* Next(HasWork&& has_work) {
    Domain* next = nullptr;
    for (Domain& d : domains_) {
      if (has_work(d) && (next == nullptr || d.served_tokens < next->served_tokens)) next = &d;
    }
    if (next == nullptr) return nullptr;
    // Whoever always had work is never behind the last one whose turn it was.
    served_tokens_ = next->served_tokens = std::max(next->served_tokens, served_tokens_);
    return next;
  }

 private:
  std::vector<Domain> domains_;
  uint64_t served_tokens_ = 0;  // of the last domain whose turn it was, when it was
};

}  // namespace scion
