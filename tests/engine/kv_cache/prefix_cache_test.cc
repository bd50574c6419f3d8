// What is found is what was stored: the same tokens after the same tokens under the same key, whatever the hash.
#include "engine/kv_cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

namespace scion {
namespace {

constexpr int kBlockTokens = 4;
using Tokens = std::vector<int32_t>;

uint64_t AllTheSame(const PrefixKey&, ContentId, std::span<const int32_t>) { return 0xfffffffffffffff5; }
// Runs of the table that overlap, also past its end.
uint64_t FewPlaces(const PrefixKey&, ContentId before, std::span<const int32_t> tokens) {
  return static_cast<uint64_t>(before) * 5 + static_cast<uint64_t>(tokens[0]) % 3 - 2;
}

TEST(PrefixCache, FindsABlockByItsTokensAndThoseBefore) {
  PrefixCache cache(kBlockTokens, 8);
  const PrefixKey key;
  const Tokens one = {1, 2, 3, 4}, two = {5, 6, 7, 8};
  EXPECT_FALSE(cache.Find(key, ContentId::kEmpty, one).has_value());
  const PrefixCache::Content first = cache.Insert(key, ContentId::kEmpty, one, 3);
  const PrefixCache::Content second = cache.Insert(key, first.id, two, 0);
  EXPECT_EQ(cache.Find(key, ContentId::kEmpty, one)->block, 3);
  EXPECT_EQ(cache.Find(key, first.id, two)->block, 0);
  EXPECT_EQ(cache.Find(key, first.id, two)->id, second.id);
  EXPECT_FALSE(cache.Find(key, ContentId::kEmpty, two).has_value()) << "the same tokens after others";
  EXPECT_FALSE(cache.Find(key, second.id, two).has_value());
  EXPECT_FALSE(cache.Find(key, first.id, one).has_value());
  EXPECT_FALSE(cache.Find(key, first.id, Tokens{5, 6, 7, 9}).has_value());
}

TEST(PrefixCache, SharesNothingBetweenKeys) {
  PrefixCache cache(kBlockTokens, 8);
  const PrefixKey key{.domain = 1, .generation = 2, .tenant = 3};
  const Tokens tokens = {1, 2, 3, 4};
  const ContentId id = cache.Insert(key, ContentId::kEmpty, tokens, 0).id;
  for (const PrefixKey& other :
       {PrefixKey{.domain = 0, .generation = 2, .tenant = 3}, PrefixKey{.domain = 1, .generation = 1, .tenant = 3},
        PrefixKey{.domain = 1, .generation = 2, .tenant = 4}}) {
    EXPECT_FALSE(cache.Find(other, ContentId::kEmpty, tokens).has_value());
  }
  EXPECT_EQ(cache.Find(key, ContentId::kEmpty, tokens)->id, id);
}

// The hash says where to look and nothing else.
TEST(PrefixCache, ACollisionIsNoHit) {
  PrefixCache cache(kBlockTokens, 8, AllTheSame);
  const PrefixKey key;
  const ContentId a = cache.Insert(key, ContentId::kEmpty, Tokens{1, 2, 3, 4}, 0).id;
  EXPECT_FALSE(cache.Find(key, ContentId::kEmpty, Tokens{1, 2, 3, 5}).has_value());
  EXPECT_FALSE(cache.Find(key, a, Tokens{1, 2, 3, 4}).has_value());
  EXPECT_FALSE(cache.Find({.domain = 1}, ContentId::kEmpty, Tokens{1, 2, 3, 4}).has_value());
}

TEST(PrefixCache, ASecondBlockOfTheSameContentIsNotStored) {
  PrefixCache cache(kBlockTokens, 8);
  const Tokens tokens = {1, 2, 3, 4};
  const PrefixCache::Content first = cache.Insert({}, ContentId::kEmpty, tokens, 5);
  const PrefixCache::Content again = cache.Insert({}, ContentId::kEmpty, tokens, 6);
  EXPECT_EQ(again.block, 5);
  EXPECT_EQ(again.id, first.id);
  EXPECT_TRUE(cache.Holds(5));
  EXPECT_FALSE(cache.Holds(6));
  EXPECT_EQ(cache.size(), 1);
}

// What came after a content that is gone cannot be reached through another one in the same block.
TEST(PrefixCache, AContentThatComesAgainIsANewOne) {
  PrefixCache cache(kBlockTokens, 8);
  const Tokens tokens = {1, 2, 3, 4}, after = {5, 6, 7, 8}, other = {9, 9, 9, 9};
  const ContentId before = cache.Insert({}, ContentId::kEmpty, tokens, 0).id;
  cache.Insert({}, before, after, 1);
  EXPECT_TRUE(cache.Forget(0));
  EXPECT_FALSE(cache.Forget(0));
  const ContentId now = cache.Insert({}, ContentId::kEmpty, other, 0).id;
  EXPECT_NE(now, before);
  EXPECT_FALSE(cache.Find({}, now, after).has_value());
}

// Random stores and removals against a map from (key, all tokens up to the block's end).
TEST(PrefixCache, IsAMapFromWholePrefixesWhateverTheHash) {
  for (PrefixCache::Hash hash : {PrefixCache::DefaultHash, AllTheSame, FewPlaces}) {
    for (int num_blocks : {1, 2, 7, 32, 61}) {
      PrefixCache cache(kBlockTokens, num_blocks, hash);
      using WholePrefix = std::tuple<int, uint64_t, Tokens>;
      std::map<WholePrefix, int32_t> naive;
      std::map<int32_t, WholePrefix> held;
      std::mt19937 random(static_cast<unsigned>(num_blocks));
      int hits = 0, misses = 0;
      for (int i = 0; i < 4000; ++i) {
        // Walks down a random prompt of few different blocks as far as it is known, then stores one more.
        const PrefixKey key{.domain = static_cast<int>(random() % 2), .generation = 0, .tenant = random() % 2};
        WholePrefix prefix{key.domain, key.tenant, {}};
        ContentId before = ContentId::kEmpty;
        for (int depth = 0; depth < 4; ++depth) {
          const Tokens tokens = {static_cast<int32_t>(random() % 3), 7, 7, static_cast<int32_t>(random() % 2)};
          std::get<2>(prefix).insert(std::get<2>(prefix).end(), tokens.begin(), tokens.end());
          const std::optional<PrefixCache::Content> found = cache.Find(key, before, tokens);
          const auto expected = naive.find(prefix);
          ASSERT_EQ(found.has_value(), expected != naive.end());
          if (found) {
            ++hits;
            ASSERT_EQ(found->block, expected->second);
            // The same computed once more in another block.
            const int32_t other = static_cast<int32_t>(random() % static_cast<unsigned>(num_blocks));
            if (!held.contains(other)) {
              const PrefixCache::Content kept = cache.Insert(key, before, tokens, other);
              ASSERT_EQ(kept.block, found->block);
              ASSERT_EQ(kept.id, found->id);
            }
            before = found->id;
            continue;
          }
          ++misses;
          const int32_t block = static_cast<int32_t>(random() % static_cast<unsigned>(num_blocks));
          if (!held.contains(block)) {
            ASSERT_EQ(cache.Insert(key, before, tokens, block).block, block);
            naive[prefix] = block;
            held[block] = prefix;
          }
          break;
        }
        if (random() % 3 == 0) {
          // Forgets a block that nothing known comes after, as the order of eviction does.
          const int32_t block = static_cast<int32_t>(random() % static_cast<unsigned>(num_blocks));
          const auto it = held.find(block);
          const auto comes_after = [&](const auto& other) {
            const auto& [domain, tenant, tokens] = other.second;
            const auto& [its_domain, its_tenant, its_tokens] = it->second;
            return domain == its_domain && tenant == its_tenant && tokens.size() > its_tokens.size() &&
                   std::equal(its_tokens.begin(), its_tokens.end(), tokens.begin());
          };
          const bool is_inner = it != held.end() && std::any_of(held.begin(), held.end(), comes_after);
          if (!is_inner) {
            ASSERT_EQ(cache.Forget(block), it != held.end());
            if (it != held.end()) {
              naive.erase(it->second);
              held.erase(it);
            }
          }
        }
        ASSERT_EQ(cache.size(), static_cast<int>(held.size()));
        for (int32_t b = 0; b < num_blocks; ++b) ASSERT_EQ(cache.Holds(b), held.contains(b));
      }
      EXPECT_GT(hits, 100);
      EXPECT_GT(misses, 100);
    }
  }
}

}  // namespace
}  // namespace scion
