#include "engine/kv_cache/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace scion {
namespace {

TEST(KvCache, GivesEachBlockOnceUntilItIsFreed) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"0.k", 64}, {"0.v", 32}}, 32, 5);
  ASSERT_TRUE(cache.ok()) << cache.status();
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) {
    std::optional<int32_t> block = cache->Allocate();
    ASSERT_TRUE(block.has_value());
    EXPECT_TRUE(*block >= 0 && *block < 5);
    blocks.insert(*block);
  }
  EXPECT_EQ(blocks.size(), 5u);
  EXPECT_EQ(cache->blocks_in_use(), 5);
  EXPECT_FALSE(cache->Allocate().has_value());
  cache->Free(3);
  EXPECT_EQ(cache->blocks_in_use(), 4);
  EXPECT_EQ(cache->Allocate(), std::optional<int32_t>(3));
}

TEST(KvCache, ABlockIsInUseUntilItsLastHolderLetsGo) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 4}}, 32, 1);
  ASSERT_TRUE(cache.ok());
  const int32_t block = *cache->Allocate();
  cache->Share(block);
  cache->Free(block);
  EXPECT_EQ(cache->blocks_in_use(), 1);
  EXPECT_FALSE(cache->Allocate().has_value());
  cache->Free(block);
  EXPECT_EQ(cache->blocks_in_use(), 0);
  EXPECT_EQ(cache->Allocate(), std::optional<int32_t>(block));
}

TEST(KvCache, KeptBlocksAreTakenLastAndInTheOrderInWhichTheyWereKept) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 4}}, 32, 5);
  ASSERT_TRUE(cache.ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(cache->Allocate().has_value());
  for (int32_t block : {3, 1, 4, 0}) cache->FreeKeeping(block);
  cache->Free(2);
  EXPECT_EQ(cache->blocks_in_use(), 0);
  EXPECT_EQ(cache->blocks_kept(), 4);
  // 1 is wanted again, and kept anew: it is the last now.
  cache->Share(1);
  EXPECT_EQ(cache->blocks_in_use(), 1);
  EXPECT_EQ(cache->blocks_kept(), 3);
  cache->FreeKeeping(1);
  for (int32_t block : {2, 3, 4, 0, 1}) EXPECT_EQ(cache->Allocate(), std::optional<int32_t>(block));
  EXPECT_FALSE(cache->Allocate().has_value());
  EXPECT_EQ(cache->blocks_kept(), 0);
  EXPECT_EQ(cache->blocks_in_use(), 5);
}

// Random calls against lists of holders and of kept blocks.
TEST(KvCache, CountsAsListsWould) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 4}}, 32, 9);
  ASSERT_TRUE(cache.ok());
  std::mt19937 random(5);
  std::map<int32_t, int> holders;
  std::deque<int32_t> kept;
  int evictions = 0;
  for (int i = 0; i < 20000; ++i) {
    const unsigned what = random() % 8;
    if (what < 3) {
      const std::optional<int32_t> block = cache->Allocate();
      ASSERT_EQ(block.has_value(), holders.size() < 9);
      if (!block) continue;
      ASSERT_FALSE(holders.contains(*block));
      if (holders.size() + kept.size() == 9) {
        ASSERT_EQ(*block, kept.front());
        kept.pop_front();
        ++evictions;
      } else {
        ASSERT_EQ(std::count(kept.begin(), kept.end(), *block), 0);
      }
      holders[*block] = 1;
    } else if (what < 4 && !kept.empty()) {
      const size_t at = random() % kept.size();
      cache->Share(kept[at]);
      holders[kept[at]] = 1;
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(at));
    } else if (!holders.empty()) {
      const auto it = std::next(holders.begin(), static_cast<std::ptrdiff_t>(random() % holders.size()));
      if (what < 5) {
        cache->Share(it->first);
        ++it->second;
        continue;
      }
      const bool keeps = what < 7;
      keeps ? cache->FreeKeeping(it->first) : cache->Free(it->first);
      if (--it->second > 0) continue;
      if (keeps) kept.push_back(it->first);
      holders.erase(it);
    }
    ASSERT_EQ(cache->blocks_in_use(), static_cast<int>(holders.size()));
    ASSERT_EQ(cache->blocks_kept(), static_cast<int>(kept.size()));
  }
  EXPECT_GT(evictions, 100);
}

TEST(KvCache, PlanesDoNotOverlap) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 6}, {"b", 10}, {"c", 1}}, 32, 7);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const auto block_bytes = [&](int p) { return cache->plane_spec(p).bytes_per_token * 32; };
  const auto at = [&](int p, size_t block) { return cache->plane(p) + block * cache->block_stride(); };
  for (int p = 0; p < 3; ++p) {
    for (size_t b = 0; b < 7; ++b) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(at(p, b)) % 64, 0u);
      std::memset(at(p, b), static_cast<int>(10 * b) + p, block_bytes(p));
    }
  }
  for (int p = 0; p < 3; ++p) {
    for (size_t b = 0; b < 7; ++b) {
      for (size_t i = 0; i < block_bytes(p); ++i) {
        ASSERT_EQ(static_cast<int>(at(p, b)[i]), static_cast<int>(10 * b) + p) << "plane " << p << " byte " << i;
      }
    }
  }
}

// A page of each plane at the first token, which with huge pages is 64 MiB here, would make that step wait.
TEST(KvCache, MemoryComesWithTheBlocksThatAreWritten) {
  constexpr int kPlanes = 32, kBlocks = 128;
  const std::vector<KvPlaneSpec> planes(kPlanes, {"a", 1024});
  absl::StatusOr<KvCache> cache = KvCache::Create(planes, 32, kBlocks);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const size_t bytes = cache->block_stride() * kBlocks;
  const auto resident = [&] {
    std::vector<unsigned char> pages(bytes / 4096);
    EXPECT_EQ(::mincore(cache->plane(0), bytes, pages.data()), 0);
    size_t n = 0;
    for (unsigned char page : pages) n += page & 1;
    return n * 4096;
  };
  ASSERT_EQ(resident(), 0u);
  for (int p = 0; p < kPlanes; ++p) *cache->plane(p) = std::byte{1};
  EXPECT_GE(resident(), size_t{kPlanes} * 4096);
  EXPECT_LE(resident(), size_t{4} << 20);
}

TEST(KvCache, LargeBlocksDoNotShareTheSetsOfACache) {
  const auto stride = [](size_t bytes_per_token) { return *KvCache::BlockStride({{"a", bytes_per_token}}, 32); };
  EXPECT_EQ(stride(3), 128u);
  EXPECT_EQ(stride(8192), size_t{256} << 10);
  EXPECT_EQ(stride(16384), size_t{528} << 10);
  EXPECT_EQ(stride(32768), size_t{1040} << 10);
  EXPECT_EQ(stride(33280), size_t{1040} << 10);
  EXPECT_EQ(stride(33281), size_t{1072} << 10);
}

TEST(KvCache, TokensAreRoundedUpToBlocks) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 4}}, 32, 2);
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ(cache->blocks_for(0), 0);
  EXPECT_EQ(cache->blocks_for(1), 1);
  EXPECT_EQ(cache->blocks_for(32), 1);
  EXPECT_EQ(cache->blocks_for(33), 2);
}

TEST(KvCache, WhatCannotBeHadIsAnErrorNotAnAbort) {
  absl::StatusOr<KvCache> huge = KvCache::Create({{"a", std::numeric_limits<size_t>::max() / 64}}, 32, 1000);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  absl::StatusOr<KvCache> unbacked = KvCache::Create({{"a", size_t{1} << 40}}, 32, 1 << 10);
  EXPECT_EQ(unbacked.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(unbacked.status().message()), testing::HasSubstr("KV cache"));
  EXPECT_EQ(KvCache::Create({{"a", 4}}, 32, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace scion
