#include "engine/route/route_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace scion {
namespace {

// Two domains of 3 and 2 experts, k = 2, vocabulary of 5.
TableRouter SmallRouter() {
  TableRouter router(5, 2, {3, 2});
  router.SetDomain(0, {0, 1, 2, 0, 1, /*slot 1*/ 2, 2, 0, 1, 0}, {0.75f, 0.25f});
  router.SetDomain(1, {1, 0, 1, 0, 1, /*slot 1*/ 0, 1, 0, 1, 0}, {0.5f, 0.5f});
  return router;
}

TEST(RoutePlan, ATokenVisitsTheExpertsThatItsDomainsTableNames) {
  const TableRouter router = SmallRouter();
  RoutePlan plan({{&router, 5, 2}}, 4);
  const std::vector<int32_t> ids = {4, 2, 0, 3};
  const std::vector<int32_t> domains = {0, 0, 1, 1};
  plan.BuildTable(0, ids, domains);
  const LayerRoute& r = plan.layer(0);

  // By hand from the tables above: [row][slot], experts of domain 1 are numbered from 3.
  const int expected[4][2] = {{1, 0}, {2, 0}, {4, 3}, {3, 4}};
  for (size_t row = 0; row < 4; ++row) {
    for (size_t slot = 0; slot < 2; ++slot) {
      const int entry = r.entries[row * 2 + slot];
      EXPECT_EQ(r.rows[static_cast<size_t>(entry)], static_cast<int>(row));
      int expert = -1;
      for (const ExpertRows& e : r.experts) {
        if (e.begin <= entry && entry < e.end) expert = e.expert;
      }
      EXPECT_EQ(expert, expected[row][slot]) << "row " << row << " slot " << slot;
      EXPECT_EQ(r.weights[row * 2 + slot], row >= 2 ? 0.5f : slot == 0 ? 0.75f : 0.25f);
    }
  }
}

TEST(RoutePlan, EveryVisitIsAnEntryOnceAndRowsAscendWithinAnExpert) {
  std::mt19937 random(7);
  constexpr int kVocab = 100;
  TableRouter router(kVocab, 3, {4, 7, 1});
  const int sizes[] = {4, 7, 1};
  for (int d = 0; d < 3; ++d) {
    std::vector<int32_t> table(kVocab * 3);
    for (int32_t& e : table) e = static_cast<int32_t>(random() % static_cast<unsigned>(sizes[d]));
    router.SetDomain(d, table, {1, 1, 1});
  }
  RoutePlan plan({{&router, 12, 3}, {&router, 12, 3}}, 64);
  for (int round = 0; round < 50; ++round) {
    std::vector<int32_t> ids;
    std::vector<int32_t> domains;
    while (ids.size() < 1 + random() % 50) {
      const size_t n = 1 + random() % 14;
      domains.resize(domains.size() + n, static_cast<int32_t>(random() % 3));
      for (size_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(random() % kVocab));
    }
    for (int layer = 0; layer < 2; ++layer) {
      plan.BuildTable(layer, ids, domains);
      const LayerRoute& r = plan.layer(layer);
      ASSERT_EQ(r.entries.size(), ids.size() * 3);
      std::set<int> seen(r.entries.begin(), r.entries.end());
      EXPECT_EQ(seen.size(), ids.size() * 3);
      int next = 0;
      int last_expert = -1;
      for (const ExpertRows& e : r.experts) {
        EXPECT_EQ(e.begin, next);
        EXPECT_LT(e.begin, e.end);
        EXPECT_GT(e.expert, last_expert);
        for (int i = e.begin + 1; i < e.end; ++i) {
          EXPECT_LE(r.rows[static_cast<size_t>(i - 1)], r.rows[static_cast<size_t>(i)]);
        }
        next = e.end;
        last_expert = e.expert;
      }
      EXPECT_EQ(next, static_cast<int>(ids.size() * 3));
    }
  }
}

TEST(RoutePlan, ALayerIsPlannedAnewForFewerRows) {
  const TableRouter router = SmallRouter();
  RoutePlan plan({{&router, 5, 2}, {&router, 5, 2}}, 4);
  for (int layer : {0, 1}) {
    plan.BuildTable(layer, std::vector<int32_t>{4, 2, 0, 3}, std::vector<int32_t>{0, 0, 1, 1});
  }
  plan.BuildTable(1, std::vector<int32_t>{2, 3}, std::vector<int32_t>{0, 1});
  EXPECT_EQ(plan.layer(0).rows.size(), 8u);
  // By hand: row 0 visits experts 2 and 0, row 1 visits 3 and 4.
  const LayerRoute& r = plan.layer(1);
  EXPECT_EQ(std::vector<int32_t>(r.entries.begin(), r.entries.end()), (std::vector<int32_t>{1, 0, 2, 3}));
  EXPECT_EQ(std::vector<int32_t>(r.rows.begin(), r.rows.end()), (std::vector<int32_t>{0, 0, 1, 1}));
  EXPECT_EQ(std::vector<float>(r.weights.begin(), r.weights.end()), (std::vector<float>{0.75f, 0.25f, 0.5f, 0.5f}));
  ASSERT_EQ(r.experts.size(), 4u);
  const int want[4] = {0, 2, 3, 4};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(r.experts[i].expert, want[i]);
}

// A gate's choice of one layer is sorted like a table's, and leaves the layers planned by tables as they are.
TEST(RoutePlan, AGatesChoiceIsPlannedWhenItsLayerRuns) {
  const TableRouter router = SmallRouter();
  RoutePlan plan({{&router, 5, 2}, {nullptr, 8, 3}}, 4);
  const std::vector<int32_t> ids = {4, 2};
  const std::vector<int32_t> domains = {0, 0};
  plan.BuildTable(0, ids, domains);
  const std::vector<int32_t> table_entries(plan.layer(0).entries.begin(), plan.layer(0).entries.end());
  const std::vector<int32_t> experts = {7, 0, 3, /*row 1*/ 3, 7, 1};
  const std::vector<float> weights = {0.5f, 0.3f, 0.2f, 0.6f, 0.3f, 0.1f};
  plan.BuildGated(1, 2, experts, weights);
  const LayerRoute& r = plan.layer(1);
  ASSERT_EQ(r.experts.size(), 4u);
  const int want[4][3] = {{0, 0, 1}, {1, 1, 2}, {3, 2, 4}, {7, 4, 6}};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(r.experts[i].expert, want[i][0]);
    EXPECT_EQ(r.experts[i].begin, want[i][1]);
    EXPECT_EQ(r.experts[i].end, want[i][2]);
  }
  EXPECT_EQ(std::vector<int32_t>(r.entries.begin(), r.entries.end()), (std::vector<int32_t>{4, 0, 2, 3, 5, 1}));
  EXPECT_EQ(std::vector<int32_t>(r.rows.begin(), r.rows.end()), (std::vector<int32_t>{0, 1, 0, 1, 0, 1}));
  EXPECT_EQ(std::vector<float>(r.weights.begin(), r.weights.end()), weights);
  EXPECT_EQ(std::vector<int32_t>(plan.layer(0).entries.begin(), plan.layer(0).entries.end()), table_entries);
}

}  // namespace
}  // namespace scion
