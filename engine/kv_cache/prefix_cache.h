// Which blocks of the KV cache hold the keys and values of which tokens, so that a prompt that begins as another did
// takes over its blocks instead of computing them. Only full blocks are known here; they never change any more, so
// nothing is ever copied.
//
// A content is a block's tokens together with all those before it: found by the content before and the block's own
// token ids, all of which are compared, the first block's also by PrefixKey. A hash only says where to look. The type
// of the keys and values is one for all blocks of a KvCache, and a PrefixCache speaks of one KvCache.
//
// An index only: who holds a block, and when it may be taken away, is KvCache's affair. Owned by the engine thread.
// Never allocates after construction.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace scion {

// What decides over keys and values besides the tokens, and who may profit from whom.
struct PrefixKey {
  int domain = 0;
  uint64_t generation = 0;  // of the domain's weights
  uint64_t tenant = 0;      // tenants never share: how fast an answer comes would tell one what another asked

  bool operator==(const PrefixKey&) const = default;
};

// No two contents ever have the same number, even after one of them is forgotten.
enum class ContentId : uint64_t { kEmpty = 0 };  // kEmpty: before the first block

class PrefixCache {
 public:
  // Of the content before a block and the block's tokens, [block_tokens].
  using Hash = uint64_t (*)(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens);
  static uint64_t DefaultHash(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens);

  PrefixCache(int block_tokens, int num_blocks, Hash hash = DefaultHash);

  struct Content {
    ContentId id;
    int32_t block;
  };
  // tokens: [block_tokens].
  std::optional<Content> Find(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens) const;
  // `block`, which holds nothing yet, holds that content from now on; unless another block does: then that is returned
  // and nothing changes.
  Content Insert(const PrefixKey& key, ContentId before, std::span<const int32_t> tokens, int32_t block);
  bool Holds(int32_t block) const { return entries_[static_cast<size_t>(block)].id != ContentId::kEmpty; }
  // The block is about to be written to. False if it held nothing.
  bool Forget(int32_t block);

  int size() const { return size_; }

 private:
  struct Entry {  // of a block
    ContentId id = ContentId::kEmpty;
    ContentId before = ContentId::kEmpty;
    PrefixKey key;
    uint64_t hash = 0;
  };

  std::span<int32_t> TokensOf(int32_t block) {
    return std::span(tokens_).subspan(static_cast<size_t>(block) * block_tokens_, block_tokens_);
  }
  std::span<const int32_t> TokensOf(int32_t block) const {
    return std::span(tokens_).subspan(static_cast<size_t>(block) * block_tokens_, block_tokens_);
  }
  // The slot of that content, or the empty one where it would go.
  size_t SlotOf(uint64_t hash, const PrefixKey& key, ContentId before, std::span<const int32_t> tokens) const;

  const size_t block_tokens_;
  const Hash hash_;
  std::vector<Entry> entries_;   // [num_blocks]
  std::vector<int32_t> tokens_;  // [num_blocks, block_tokens]
  // Open addressing with linear probing, at most half full: block ids, or kNoBlock.
  std::vector<int32_t> slots_;
  size_t slot_mask_ = 0;
  int size_ = 0;
  uint64_t next_id_ = 1;
};

}  // namespace scion
