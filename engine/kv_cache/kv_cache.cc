#include "engine/kv_cache/kv_cache.h"

#include <cassert>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace scion {

namespace {

size_t PlaneBytes(const KvPlaneSpec& plane, int block_tokens) {
  return AlignUp(plane.bytes_per_token * static_cast<size_t>(block_tokens), 64);
}

}  // namespace

absl::StatusOr<size_t> KvCache::BlockStride(const std::vector<KvPlaneSpec>& planes, int block_tokens) {
  size_t total = 0;
  for (const KvPlaneSpec& plane : planes) {
    if (plane.bytes_per_token > (std::numeric_limits<size_t>::max() / 4 - total) / static_cast<size_t>(block_tokens)) {
      return absl::ResourceExhaustedError(absl::StrCat("KV cache plane ", plane.name, " is too large"));
    }
    total += PlaneBytes(plane, block_tokens);
  }
  // A plane's blocks must not all fall into the same sets of a cache, as they would a power of two apart.
  constexpr size_t kLarge = size_t{512} << 10, kApart = size_t{16} << 10;
  return total < kLarge ? total : (AlignUp(total, kApart) / kApart | 1) * kApart;
}

absl::StatusOr<KvCache> KvCache::Create(std::vector<KvPlaneSpec> planes, int block_tokens, int num_blocks) {
  if (block_tokens <= 0 || num_blocks <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV cache of ", num_blocks, " blocks of ", block_tokens, " tokens: both must be positive"));
  }
  KvCache cache;
  cache.block_tokens_ = block_tokens;
  cache.num_blocks_ = num_blocks;
  const absl::StatusOr<size_t> stride = BlockStride(planes, block_tokens);
  if (!stride.ok()) return stride.status();
  cache.block_stride_ = *stride;
  size_t offset = 0;
  for (const KvPlaneSpec& plane : planes) {
    cache.plane_offsets_.push_back(offset);
    offset += PlaneBytes(plane, block_tokens);
  }
  const size_t blocks = static_cast<size_t>(num_blocks);
  if (*stride > std::numeric_limits<size_t>::max() / 2 / blocks) {
    return absl::ResourceExhaustedError(absl::StrCat("a KV cache of ", blocks, " blocks of ", *stride, " bytes"));
  }
  absl::StatusOr<AlignedBuffer> memory = AlignedBuffer::Create(*stride * blocks, "the KV cache");
  if (!memory.ok()) return memory.status();
  cache.memory_ = *std::move(memory);
  cache.specs_ = std::move(planes);
  cache.free_.reserve(blocks);
  for (int32_t b = num_blocks - 1; b >= 0; --b) cache.free_.push_back(b);
  cache.holders_.resize(blocks);
  cache.kept_.resize(blocks + 1);
  cache.kept_[cache.ring_end()] = {.previous = num_blocks, .next = num_blocks};
  return cache;
}

KvCache::KvCache(KvCache&& other) noexcept
    : specs_(std::move(other.specs_)),
      plane_offsets_(std::move(other.plane_offsets_)),
      block_stride_(other.block_stride_),
      block_tokens_(other.block_tokens_),
      num_blocks_(other.num_blocks_),
      memory_(std::move(other.memory_)),
      free_(std::move(other.free_)),
      holders_(std::move(other.holders_)),
      kept_(std::move(other.kept_)),
      blocks_in_use_(other.blocks_in_use_.load()),
      blocks_kept_(other.blocks_kept_.load()) {}

std::optional<int32_t> KvCache::Allocate() {
  int32_t block = 0;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (blocks_kept() > 0) {
    block = kept_[ring_end()].next;
    Unkeep(block);
  } else {
    return std::nullopt;
  }
  holders_[static_cast<size_t>(block)] = 1;
  blocks_in_use_.fetch_add(1, std::memory_order_relaxed);
  return block;
}

void KvCache::Share(int32_t block) {
  if (holders_[static_cast<size_t>(block)]++ > 0) return;
  Unkeep(block);
  blocks_in_use_.fetch_add(1, std::memory_order_relaxed);
}

bool KvCache::Drop(int32_t block) {
  assert(block >= 0 && block < num_blocks_ && holders_[static_cast<size_t>(block)] > 0);
  if (--holders_[static_cast<size_t>(block)] > 0) return false;
  blocks_in_use_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void KvCache::Free(int32_t block) {
  if (Drop(block)) free_.push_back(block);
}

void KvCache::FreeKeeping(int32_t block) {
  if (!Drop(block)) return;
  const auto end = static_cast<int32_t>(ring_end());
  const int32_t last = kept_[ring_end()].previous;
  kept_[static_cast<size_t>(block)] = {.previous = last, .next = end};
  kept_[static_cast<size_t>(last)].next = block;
  kept_[ring_end()].previous = block;
  blocks_kept_.fetch_add(1, std::memory_order_relaxed);
}

void KvCache::Unkeep(int32_t block) {
  const Link link = kept_[static_cast<size_t>(block)];
  kept_[static_cast<size_t>(link.previous)].next = link.next;
  kept_[static_cast<size_t>(link.next)].previous = link.previous;
  blocks_kept_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace scion
