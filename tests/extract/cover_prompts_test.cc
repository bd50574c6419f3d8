// Prompts made from route tables: who is visited, how often, and within which lengths.

#include "extract/cover_prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace scion {
namespace {

constexpr int kVocab = 1000;

// Every expert gets one token at least, the rest is uneven: expert 0 has most of the vocabulary.
RouteTable UnevenTable(int layer, int num_experts, int rows, uint64_t seed) {
  RouteTable table{.layer = layer, .num_experts = num_experts, .expert_of_token = {}};
  std::mt19937_64 random(seed);
  for (int i = 0; i < rows * kVocab; ++i) {
    const bool rare = random() % 16 == 0;
    table.expert_of_token.push_back(rare ? static_cast<int32_t>(random() % static_cast<uint64_t>(num_experts)) : 0);
  }
  for (int e = 0; e < num_experts; ++e) {
    const size_t token = (static_cast<size_t>(e) * 7919 + seed * 31) % kVocab;
    table.expert_of_token[token] = e;
  }
  return table;
}

// Distinct tokens that visit each expert of the table.
std::vector<std::set<int32_t>> Visitors(const RouteTable& table, const std::vector<std::vector<int32_t>>& prompts) {
  std::vector<std::set<int32_t>> visitors(static_cast<size_t>(table.num_experts));
  for (const auto& prompt : prompts) {
    for (const int32_t token : prompt) {
      for (size_t at = static_cast<size_t>(token); at < table.expert_of_token.size(); at += kVocab) {
        visitors[static_cast<size_t>(table.expert_of_token[at])].insert(token);
      }
    }
  }
  return visitors;
}

TEST(CoverPromptsTest, EveryExpertOfEveryLayerIsVisitedByAsManyTokensAsAsked) {
  const std::vector<RouteTable> tables = {UnevenTable(3, 64, 1, 1), UnevenTable(4, 64, 2, 2), UnevenTable(5, 7, 1, 3)};
  // The short prompts alone must do: the long one would hide a hole in small models.
  auto prompts = MakeCoverPrompts(tables, kVocab, 128);
  prompts.pop_back();
  std::vector<std::vector<int32_t>> all_tokens(1);
  for (int32_t t = 0; t < kVocab; ++t) all_tokens[0].push_back(t);
  for (const RouteTable& table : tables) {
    const auto visitors = Visitors(table, prompts);
    const auto possible = Visitors(table, all_tokens);
    for (size_t e = 0; e < visitors.size(); ++e) {
      EXPECT_GE(visitors[e].size(), std::min<size_t>(4, possible[e].size()))
          << "layer " << table.layer << " expert " << e;
    }
  }
}

TEST(CoverPromptsTest, LengthsAreMixedWithinTheContextAndOneIsLong) {
  const std::vector<RouteTable> tables = {UnevenTable(0, 64, 1, 1)};
  for (const int context : {1, 5, 40, 300, 100000}) {
    const auto prompts = MakeCoverPrompts(tables, kVocab, context);
    std::set<size_t> lengths;
    for (const auto& prompt : prompts) {
      EXPECT_GE(prompt.size(), 1u);
      EXPECT_LE(prompt.size(), static_cast<size_t>(context));
      for (const int32_t token : prompt) EXPECT_TRUE(token >= 0 && token < kVocab);
      lengths.insert(prompt.size());
    }
    EXPECT_EQ(prompts.back().size(), static_cast<size_t>(std::min(context, 512)));
    if (context >= 300) {
      EXPECT_GE(lengths.size(), 4u);
    }
  }
}

TEST(CoverPromptsTest, ExpertsWithoutATokenAreCountedAsUnreachable) {
  RouteTable table{.layer = 0, .num_experts = 5, .expert_of_token = std::vector<int32_t>(kVocab, 1)};
  table.expert_of_token[17] = 4;
  EXPECT_EQ(CountReachable(table), 2);
  const auto visitors = Visitors(table, MakeCoverPrompts({&table, 1}, kVocab, 64));
  EXPECT_TRUE(visitors[4].contains(17));
}

TEST(CoverPromptsTest, ModelWithoutRoutesGetsTheLongPrompt) { EXPECT_EQ(MakeCoverPrompts({}, kVocab, 64).size(), 1u); }

TEST(CoverPromptsTest, SameTablesGiveTheSamePrompts) {
  const std::vector<RouteTable> tables = {UnevenTable(0, 16, 1, 5)};
  EXPECT_EQ(MakeCoverPrompts(tables, kVocab, 64), MakeCoverPrompts(tables, kVocab, 64));
}

}  // namespace
}  // namespace scion
