#include "engine/model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>

namespace scion {
namespace {

class SamplerTest : public testing::TestWithParam<kernels::Tier> {
 protected:
  const kernels::KernelTable& kernels() const { return kernels::GetKernels(GetParam()); }

  // How often each id is drawn over many positions, as shares.
  std::vector<double> Shares(std::vector<float> logits, const SamplerParams& params, int draws = 40000) {
    Sampler sampler(kernels(), static_cast<int>(logits.size()));
    std::vector<double> shares(logits.size());
    for (int p = 0; p < draws; ++p) shares[static_cast<size_t>(sampler.Sample(logits, params, p))] += 1.0 / draws;
    return shares;
  }
  static std::vector<double> Softmax(const std::vector<double>& logits) {
    std::vector<double> p;
    for (double l : logits) p.push_back(std::exp(l));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= sum;
    return p;
  }
  // Six standard deviations of a share over 40000 draws.
  static double Tolerance(double p) { return 6 * std::sqrt(p * (1 - p) / 40000) + 1e-12; }
};

const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 1.5f, 2.0f, -3.0f, 0.0f};

TEST_P(SamplerTest, GreedyTakesTheLargestAndOfEqualsTheLowestId) {
  std::vector<float> logits = kLogits;
  Sampler sampler(kernels(), 7);
  EXPECT_EQ(sampler.Sample(logits, {.temperature = 0}, 3), 1);
}

TEST_P(SamplerTest, DrawsFollowTheSoftmaxOfLogitsOverTemperature) {
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    std::vector<double> scaled;
    for (float l : kLogits) scaled.push_back(l / temperature);
    const std::vector<double> expected = Softmax(scaled);
    const std::vector<double> shares = Shares(kLogits, {.temperature = temperature, .seed = 42});
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(shares[i], expected[i], Tolerance(expected[i])) << i;
  }
}

TEST_P(SamplerTest, TopKKeepsTheKMostLikely) {
  // Ids 1, 4 (2.0) and 3 (1.5) are the three best.
  const std::vector<double> expected = Softmax({2.0, 2.0, 1.5});
  const std::vector<double> shares = Shares(kLogits, {.temperature = 1, .top_k = 3, .seed = 1});
  EXPECT_NEAR(shares[1], expected[0], Tolerance(expected[0]));
  EXPECT_NEAR(shares[4], expected[1], Tolerance(expected[1]));
  EXPECT_NEAR(shares[3], expected[2], Tolerance(expected[2]));
  EXPECT_EQ(shares[0] + shares[2] + shares[5] + shares[6], 0);
}

TEST_P(SamplerTest, TopPKeepsTheFewestThatReachTheMass) {
  // Softmax of kLogits: ids 1 and 4 hold 0.3236 each, id 3 0.1963, id 0 0.0722: 0.7 needs 1, 4 and 3.
  const std::vector<double> expected = Softmax({2.0, 2.0, 1.5});
  for (int top_k : {0, 6}) {
    const std::vector<double> shares = Shares(kLogits, {.temperature = 1, .top_k = top_k, .top_p = 0.7f, .seed = 9});
    EXPECT_NEAR(shares[1], expected[0], Tolerance(expected[0]));
    EXPECT_NEAR(shares[3], expected[2], Tolerance(expected[2]));
    EXPECT_EQ(shares[0] + shares[2] + shares[5] + shares[6], 0);
  }
  EXPECT_NEAR(Shares(kLogits, {.temperature = 1, .top_p = 1e-6f})[1], 1, 1e-9);
}

// What a sort of the whole vocabulary would choose, on logits of which many are equal.
TEST_P(SamplerTest, EveryDrawIsThatOfAFullSort) {
  std::mt19937 random(5);
  std::vector<float> logits(500);
  Sampler sampler(kernels(), 500);
  int position = 0;
  for (int top_k : {0, 1, 2, 40, 499, 500, 10000}) {
    for (float top_p : {1.0f, 0.9f, 0.3f}) {
      if ((top_k == 0 || top_k >= 500) && top_p == 1) continue;  // all: drawn in order of ids
      for (int draw = 0; draw < 50; ++draw) {
        for (float& l : logits) l = static_cast<float>(random() % 40) / 8.0f;
        std::vector<int32_t> ids(logits.size());
        std::iota(ids.begin(), ids.end(), 0);
        std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
          return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
        });
        if (top_k > 0 && top_k < 500) ids.resize(static_cast<size_t>(top_k));
        std::vector<double> weights;
        for (int32_t id : ids)
          weights.push_back(std::exp((logits[static_cast<size_t>(id)] - logits[static_cast<size_t>(ids[0])]) / 0.7));
        const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
        double kept = 0;
        size_t num_kept = 0;
        while (num_kept < ids.size() && kept < static_cast<double>(top_p) * all * (1 - 1e-9))
          kept += weights[num_kept++];
        double left = static_cast<double>(UniformAt(8, static_cast<uint64_t>(++position))) * kept;
        size_t expected = 0;
        while (expected + 1 < num_kept && left >= weights[expected]) left -= weights[expected++];
        EXPECT_EQ(sampler.Sample(logits, {.temperature = 0.7f, .top_k = top_k, .top_p = top_p, .seed = 8}, position),
                  ids[expected])
            << "top_k " << top_k << ", top_p " << top_p;
      }
    }
  }
}

TEST_P(SamplerTest, AChoiceIsAFunctionOfSeedAndPosition) {
  std::mt19937 random(3);
  std::vector<float> logits(1000);
  for (float& l : logits) l = static_cast<float>(random() % 1000) / 200.0f;
  Sampler a(kernels(), 1000);
  Sampler b(kernels(), 1000);
  const SamplerParams params{.temperature = 1, .seed = 77};
  std::vector<int32_t> forward;
  for (int p = 0; p < 100; ++p) forward.push_back(a.Sample(logits, params, p));
  int differs_by_seed = 0;
  for (int p = 99; p >= 0; --p) {
    EXPECT_EQ(b.Sample(logits, params, p), forward[static_cast<size_t>(p)]);
    differs_by_seed += b.Sample(logits, {.temperature = 1, .seed = 78}, p) != forward[static_cast<size_t>(p)];
  }
  EXPECT_GT(differs_by_seed, 80);
  EXPECT_GT(std::set<int32_t>(forward.begin(), forward.end()).size(), 50u);
}

TEST_P(SamplerTest, BiasSteersTheChoiceAndLeavesTheLogitsAsTheyWere) {
  std::vector<float> logits = kLogits;
  const std::vector<std::pair<int32_t, float>> bias = {{1, -100}, {4, -100}, {5, 0.3f}};
  Sampler sampler(kernels(), 7);
  EXPECT_EQ(sampler.Sample(logits, {.temperature = 0, .logit_bias = bias}, 0), 3);
  EXPECT_EQ(std::memcmp(logits.data(), kLogits.data(), sizeof(float) * 7), 0);
  const std::vector<double> shares = Shares(kLogits, {.temperature = 1, .seed = 5, .logit_bias = bias});
  EXPECT_EQ(shares[1] + shares[4], 0);
}

TEST_P(SamplerTest, LogprobsAreOfTheSoftmaxAndSorted) {
  std::vector<double> wide(kLogits.begin(), kLogits.end());
  const std::vector<double> p = Softmax(wide);
  std::vector<Logprob> top(4);
  TopLogprobs(kernels(), kLogits, top);
  const int32_t expected_ids[] = {1, 4, 3, 0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(top[i].token_id, expected_ids[i]);
    EXPECT_NEAR(top[i].logprob, std::log(p[static_cast<size_t>(top[i].token_id)]), 1e-6);
  }
  EXPECT_NEAR(LogprobOf(kernels(), kLogits, 5), std::log(p[5]), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Tiers, SamplerTest,
                         testing::ValuesIn(kernels::SupportedTiers().begin(), kernels::SupportedTiers().end()),
                         [](const auto& info) { return std::string(kernels::TierName(info.param)); });

}  // namespace
}  // namespace scion
