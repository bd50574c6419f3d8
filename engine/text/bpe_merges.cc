#include "engine/text/bpe_merges.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace scion {
namespace {

constexpr uint32_t kNoRank = UINT32_MAX;
constexpr uint32_t kNone = UINT32_MAX;
constexpr int32_t kJoined = -1;
// Positions are 32-bit; a longer pre-token is encoded in chunks.
constexpr size_t kMaxChunkBytes = size_t{1} << 30;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeMerges::BpeMerges(std::vector<int32_t> byte_ids, const std::vector<Merge>& merges) : byte_ids_(std::move(byte_ids)) {
  rank_of_pair_.reserve(merges.size());
  joined_of_rank_.reserve(merges.size());
  for (const Merge& merge : merges) {
    rank_of_pair_[PairKey(merge.left, merge.right)] = static_cast<uint32_t>(joined_of_rank_.size());
    joined_of_rank_.push_back(merge.joined);
  }
}

uint32_t BpeMerges::RankOf(int32_t left, int32_t right) const {
  const auto it = rank_of_pair_.find(PairKey(left, right));
  return it == rank_of_pair_.end() ? kNoRank : it->second;
}

void BpeMerges::Encode(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const {
  for (size_t begin = 0; begin < bytes.size(); begin += kMaxChunkBytes) {
    EncodeChunk(bytes.substr(begin, kMaxChunkBytes), scratch, ids);
  }
}

void BpeMerges::EncodeChunk(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& [symbol, previous, next, queue] = scratch;
  symbol.clear();
  for (const char byte : bytes) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id != kNoToken) symbol.push_back(id);
  }
  if (symbol.empty()) return;
  const uint32_t size = static_cast<uint32_t>(symbol.size());
  previous.resize(size);
  next.resize(size);
  queue.clear();
  for (uint32_t i = 0; i < size; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == size ? kNone : i + 1;
  }
  for (uint32_t i = 0; i + 1 < size; ++i) {
    const uint32_t rank = RankOf(symbol[i], symbol[i + 1]);
    if (rank != kNoRank) queue.push_back(uint64_t{rank} << 32 | i);
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());

  const auto push = [&](uint32_t position) {
    const uint32_t rank = RankOf(symbol[position], symbol[next[position]]);
    if (rank == kNoRank) return;
    queue.push_back(uint64_t{rank} << 32 | position);
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const uint32_t position = static_cast<uint32_t>(top);
    const int32_t joined = joined_of_rank_[top >> 32];
    if (symbol[position] == kJoined || next[position] == kNone) continue;
    const uint32_t right = next[position];
    // Stale when one of the two has changed since; what counts is the token that would come out.
    const uint32_t rank = RankOf(symbol[position], symbol[right]);
    if (rank == kNoRank || joined_of_rank_[rank] != joined) continue;
    symbol[position] = joined;
    symbol[right] = kJoined;
    next[position] = next[right];
    if (next[position] != kNone) {
      previous[next[position]] = position;
      push(position);
    }
    if (previous[position] != kNone) push(previous[position]);
  }
  for (uint32_t i = 0; i != kNone; i = next[i]) ids.push_back(symbol[i]);
}

}  // namespace scion
