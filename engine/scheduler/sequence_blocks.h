// The blocks of sequences: taken as they are needed, taken over where the prefix cache knows them, given back so that
// they can be found again. Owned by the engine thread. Never allocates.
#pragma once

#include <cstdint>

#include "engine/kv_cache/kv_cache.h"
#include "engine/kv_cache/prefix_cache.h"
#include "engine/scheduler/sequence.h"

namespace scion {

class SequenceBlocks {
 public:
  // prefixes: null for none. Both must outlive this.
  SequenceBlocks(KvCache& cache, PrefixCache* prefixes) : cache_(cache), prefixes_(prefixes) {}

  // Passes over the sequence's next tokens as long as the prefix cache has them, but never over one whose logits are
  // wanted. Returns how many.
  int Reuse(Sequence* sequence);
  // Blocks for the sequence's first `num_tokens`. False if there are not enough; then it has what there was.
  bool Reserve(Sequence* sequence, int num_tokens);
  // Makes known the blocks that have become full. Where another sequence had computed the same before, that one's block
  // takes the place of this one's: the bits are the same.
  void Store(Sequence* sequence);
  // Gives all back; the sequence has nothing computed any more.
  void Release(Sequence* sequence);

  // Blocks whose content was forgotten because their memory was needed.
  uint64_t evictions() const { return evictions_; }

 private:
  KvCache& cache_;
  PrefixCache* const prefixes_;
  uint64_t evictions_ = 0;
};

}  // namespace scion
