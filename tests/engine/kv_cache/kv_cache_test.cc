#include "engine/kv_cache/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>

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

TEST(KvCache, PlanesDoNotOverlap) {
  absl::StatusOr<KvCache> cache = KvCache::Create({{"a", 6}, {"b", 10}, {"c", 1}}, 32, 7);
  ASSERT_TRUE(cache.ok()) << cache.status();
  for (int p = 0; p < 3; ++p) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(cache->plane(p)) % 64, 0u);
    std::memset(cache->plane(p), p + 1, cache->block_bytes(p) * 7);
  }
  for (int p = 0; p < 3; ++p) {
    for (size_t i = 0; i < cache->block_bytes(p) * 7; ++i) {
      ASSERT_EQ(static_cast<int>(cache->plane(p)[i]), p + 1) << "plane " << p << " byte " << i;
    }
  }
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
