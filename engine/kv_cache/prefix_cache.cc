#include "engine/kv_cache/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "absl/hash/hash.h"
#include "absl/types/span.h"

namespace scion {
namespace {

constexpr int32_t kNoBlock = -1;

}  // namespace

// Seeded by the process, so that nobody can make up prompts that all look in the same place.
uint64_t PrefixCache::DefaultHash(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens) {
  return absl::HashOf(key.domain, key.generation, key.tenant, before,
                      absl::Span<const int32_t>(tokens.data(), tokens.size()));
}

PrefixCache::PrefixCache(int block_tokens, int num_blocks, Hash hash)
    : block_tokens_(static_cast<size_t>(block_tokens)),
      hash_(hash),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks) * block_tokens_),
      slots_(std::bit_ceil(2 * static_cast<size_t>(num_blocks)), kNoBlock),
      slot_mask_(slots_.size() - 1) {}

size_t PrefixCache::SlotOf(uint64_t hash, const PrefixKey& key, ContentId before,
                           std::span<const int32_t> tokens) const {
  size_t slot = hash & slot_mask_;
  for (; slots_[slot] != kNoBlock; slot = (slot + 1) & slot_mask_) {
    const Entry& e = entries_[static_cast<size_t>(slots_[slot])];
    if (e.hash == hash && e.before == before && e.key == key &&
        std::equal(tokens.begin(), tokens.end(), TokensOf(slots_[slot]).begin())) {
      break;
    }
  }
  return slot;
}

std::optional<PrefixCache::Content> PrefixCache::Find(const PrefixKey& key, ContentId before,
                                                      std::span<const int32_t> tokens) const {
  assert(tokens.size() == block_tokens_);
  const int32_t block = slots_[SlotOf(hash_(key, before, tokens), key, before, tokens)];
  if (block == kNoBlock) return std::nullopt;
  return Content{.id = entries_[static_cast<size_t>(block)].id, .block = block};
}

PrefixCache::Content PrefixCache::Insert(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens,
                                         int32_t block) {
  assert(tokens.size() == block_tokens_ && !Holds(block));
  const uint64_t hash = hash_(key, before, tokens);
  const size_t slot = SlotOf(hash, key, before, tokens);
  if (const int32_t other = slots_[slot]; other != kNoBlock) {
    return {.id = entries_[static_cast<size_t>(other)].id, .block = other};
  }
  slots_[slot] = block;
  ++size_;
  const ContentId id{next_id_++};
  entries_[static_cast<size_t>(block)] = {.id = id, .before = before, .key = key, .hash = hash};
  std::copy(tokens.begin(), tokens.end(), TokensOf(block).begin());
  return {.id = id, .block = block};
}

bool PrefixCache::Forget(int32_t block) {
  if (!Holds(block)) return false;
  Entry& forgotten = entries_[static_cast<size_t>(block)];
  size_t hole = forgotten.hash & slot_mask_;
  while (slots_[hole] != block) hole = (hole + 1) & slot_mask_;
  // Who comes behind in the same run moves up into the hole, unless that is before the place where it is looked for.
  for (size_t slot = (hole + 1) & slot_mask_; slots_[slot] != kNoBlock; slot = (slot + 1) & slot_mask_) {
    const size_t home = entries_[static_cast<size_t>(slots_[slot])].hash & slot_mask_;
    if (((slot - home) & slot_mask_) < ((slot - hole) & slot_mask_)) continue;
    slots_[hole] = slots_[slot];
    hole = slot;
  }
  slots_[hole] = kNoBlock;
  forgotten = {};
  --size_;
  return true;
}

}  // namespace scion
