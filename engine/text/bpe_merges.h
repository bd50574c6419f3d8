// The merge loop of byte-pair encoding: of all adjacent pairs the one of lowest rank is joined, the leftmost first,
// until none is left.
//
// O(n log n) in the bytes of one pre-token, so a megabyte of letters is an ordinary input. Same order as Hugging
// Face's `Word::merge_all`. Immutable once built; a scratch belongs to one thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace scion {

class BpeMerges {
 public:
  static constexpr int32_t kNoToken = -1;
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t joined;
  };
  struct Scratch {
    std::vector<int32_t> symbol;  // -1: joined into the one before it
    std::vector<uint32_t> previous;
    std::vector<uint32_t> next;
    std::vector<uint64_t> queue;  // rank << 32 | position, a heap with the smallest on top
  };

  // `merges` in order of rank; of a pair that comes twice the last counts. byte_ids: [256], the token of each byte;
  // a byte with kNoToken is left out, and its neighbours become neighbours.
  BpeMerges(std::vector<int32_t> byte_ids, const std::vector<Merge>& merges);

  // Appends the tokens of one pre-token.
  void Encode(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  void EncodeChunk(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const;
  // The rank of joining two tokens, or kNoRank.
  uint32_t RankOf(int32_t left, int32_t right) const;

  std::vector<int32_t> byte_ids_;
  absl::flat_hash_map<uint64_t, uint32_t> rank_of_pair_;
  std::vector<int32_t> joined_of_rank_;
};

}  // namespace scion
