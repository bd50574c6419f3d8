#include "engine/route/gate_router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace scion {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice Choose(const std::vector<float>& scores, size_t k, bool normalise) {
  Choice c{std::vector<int32_t>(k, -1), std::vector<float>(k, -1.0f)};
  ChooseExperts(scores, normalise, c.experts, c.weights);
  return c;
}

// In double precision, by sorting all experts.
Choice Reference(const std::vector<float>& scores, size_t k, bool normalise) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  double all = 0, chosen = 0;
  for (float s : scores) all += std::exp(static_cast<double>(s));
  for (size_t i = 0; i < k; ++i) chosen += std::exp(static_cast<double>(scores[static_cast<size_t>(order[i])]));
  Choice c;
  for (size_t i = 0; i < k; ++i) {
    c.experts.push_back(order[i]);
    c.weights.push_back(static_cast<float>(std::exp(static_cast<double>(scores[static_cast<size_t>(order[i])])) /
                                           (normalise ? chosen : all)));
  }
  return c;
}

TEST(GateRouter, TakesTheMostProbableExpertsWithTheirSoftmaxWeights) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (const size_t num_experts : {1u, 2u, 8u, 64u, 129u}) {
    for (const size_t k : {1u, 2u, 8u}) {
      if (k > num_experts) continue;
      for (int round = 0; round < 50; ++round) {
        std::vector<float> scores(num_experts);
        for (float& s : scores) s = normal(random);
        for (const bool normalise : {false, true}) {
          const Choice got = Choose(scores, k, normalise);
          const Choice want = Reference(scores, k, normalise);
          ASSERT_EQ(got.experts, want.experts);
          for (size_t i = 0; i < k; ++i) ASSERT_NEAR(got.weights[i], want.weights[i], 1e-6f);
        }
      }
    }
  }
}

TEST(GateRouter, TiesGoToTheLowerNumber) {
  EXPECT_EQ(Choose({1, 2, 2, 1, 2}, 4, true).experts, (std::vector<int32_t>{1, 2, 4, 0}));
}

TEST(GateRouter, LargeScoresDoNotOverflow) {
  const Choice c = Choose({1e30f, -1e30f, 1e30f}, 2, true);
  EXPECT_EQ(c.experts, (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(c.weights, (std::vector<float>{0.5f, 0.5f}));
}

// A damaged model's scores index memory all the same.
TEST(GateRouter, WhatIsNotFiniteStillChoosesDifferentExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& scores :
       {std::vector<float>{nan, nan, nan, nan}, {nan, 1, nan, 2}, {-inf, -inf, -inf, -inf}, {inf, inf, 0, nan}}) {
    Choice c = Choose(scores, 3, true);
    std::sort(c.experts.begin(), c.experts.end());
    EXPECT_EQ(std::unique(c.experts.begin(), c.experts.end()), c.experts.end());
    for (int32_t e : c.experts) EXPECT_TRUE(e >= 0 && e < 4) << e;
  }
  EXPECT_EQ(Choose({nan, 1, nan, 2}, 2, true).experts, (std::vector<int32_t>{3, 1}));
}

}  // namespace
}  // namespace scion
