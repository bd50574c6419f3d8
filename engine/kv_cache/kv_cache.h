// Memory for what a sequence leaves behind as it is computed: a pool of blocks of a fixed number of tokens. What lies
// in a block is the model's business: it asks for named planes (say "3.k", "3.v" for layer 3) with so many bytes per
// token, and finds them side by side in every block. A sequence owns a list of block ids. Several sequences may share a
// block whose content no longer changes.
//
// Memory is touched first where a block is first written, and all of a block is written with its tokens: so it comes a
// huge page every few blocks, not one for each plane in the same step.
//
// A block is in use (somebody holds it), kept (nobody does, but its content may be wanted again), or free.
//
// Owned by the engine thread; the counters may be read from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/aligned_buffer.h"

namespace scion {

struct KvPlaneSpec {
  std::string name;
  size_t bytes_per_token = 0;
};

class KvCache {
 public:
  // ResourceExhausted, with the size asked for, if the memory can't be had.
  static absl::StatusOr<KvCache> Create(std::vector<KvPlaneSpec> planes, int block_tokens, int num_blocks);
  // Memory for a block, in bytes; ResourceExhausted if no machine has so much.
  static absl::StatusOr<size_t> BlockStride(const std::vector<KvPlaneSpec>& planes, int block_tokens);

  KvCache(KvCache&& other) noexcept;

  // A block with one holder, or nothing when all are in use: a free one if there is one, else of those that are kept
  // the one that has been so for longest, whose content is lost. None of these calls allocates memory.
  std::optional<int32_t> Allocate();
  // One holder more of a block that is in use or kept.
  void Share(int32_t block);
  // One holder less; after the last, the block is free.
  void Free(int32_t block);
  // The same; after the last, the block is kept.
  void FreeKeeping(int32_t block);

  int num_planes() const { return static_cast<int>(specs_.size()); }
  const KvPlaneSpec& plane_spec(int plane) const { return specs_[static_cast<size_t>(plane)]; }
  // The plane in block 0; block b's lies b * block_stride() bytes after it. 64-byte aligned.
  std::byte* plane(int plane) const { return memory_.data() + plane_offsets_[static_cast<size_t>(plane)]; }
  size_t block_stride() const { return block_stride_; }

  int block_tokens() const { return block_tokens_; }
  int num_blocks() const { return num_blocks_; }
  int blocks_in_use() const { return blocks_in_use_.load(std::memory_order_relaxed); }
  int blocks_kept() const { return blocks_kept_.load(std::memory_order_relaxed); }
  int blocks_for(int tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }

 private:
  // Neighbours in the ring of kept blocks, whose first is the successor of the ring's end: the entry past all blocks.
  struct Link {
    int32_t previous;
    int32_t next;
  };

  KvCache() = default;
  size_t ring_end() const { return static_cast<size_t>(num_blocks_); }
  // One holder less; true if it was the last.
  bool Drop(int32_t block);
  void Unkeep(int32_t block);

  std::vector<KvPlaneSpec> specs_;
  std::vector<size_t> plane_offsets_;  // in a block
  size_t block_stride_ = 0;
  int block_tokens_ = 0;
  int num_blocks_ = 0;
  AlignedBuffer memory_;
  std::vector<int32_t> free_;
  std::vector<int32_t> holders_;  // of each block
  std::vector<Link> kept_;        // in the order in which they came to be kept
  std::atomic<int> blocks_in_use_{0};
  std::atomic<int> blocks_kept_{0};
};

}  // namespace scion
