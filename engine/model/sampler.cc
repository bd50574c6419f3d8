#include "engine/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace scion {
namespace {

// Steele, Lea, Flood: SplitMix64's finaliser.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Whether a comes before b: by logit, of equals the lower id.
struct Better {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  }
};

}  // namespace

float UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t bits = Mix(Mix(seed + 0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u * (position + 1));
  return static_cast<float>(bits >> 40) * 0x1p-24f;
}

Sampler::Sampler(const kernels::KernelTable& kernels, int vocab_size)
    : kernels_(kernels), candidates_(static_cast<size_t>(vocab_size)), weights_(static_cast<size_t>(vocab_size)) {
  unbiased_.reserve(static_cast<size_t>(vocab_size));
}

int32_t Sampler::Sample(std::span<float> logits, const SamplerParams& params, int position) {
  unbiased_.clear();
  for (auto [id, bias] : params.logit_bias) {
    unbiased_.push_back(logits[static_cast<size_t>(id)]);
    logits[static_cast<size_t>(id)] += bias;
  }
  const int32_t chosen = Choose(logits, params, position);
  for (size_t i = 0; i < unbiased_.size(); ++i) logits[static_cast<size_t>(params.logit_bias[i].first)] = unbiased_[i];
  return chosen;
}

int32_t Sampler::Choose(std::span<const float> logits, const SamplerParams& params, int position) {
  const int best = kernels_.argmax(logits.data(), static_cast<int>(logits.size()));
  if (params.temperature <= 0) return best;

  const float u = UniformAt(params.seed, static_cast<uint64_t>(position));
  const bool all = params.top_k <= 0 || params.top_k >= static_cast<int>(logits.size());
  if (!all || params.top_p < 1) return SampleFromSorted(logits, params, u);

  // The whole vocabulary: no order is needed, a running sum in order of ids will do.
  const float max = logits[static_cast<size_t>(best)];
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = std::exp((logits[i] - max) / params.temperature);
    total += weights_[i];
  }
  double left = static_cast<double>(u) * total;
  for (size_t i = 0; i < logits.size(); ++i) {
    left -= weights_[i];
    if (left < 0) return static_cast<int32_t>(i);
  }
  return best;
}

int32_t Sampler::SampleFromSorted(std::span<const float> logits, const SamplerParams& params, float u) {
  const int taken = params.top_k > 0 ? TakeTopK(logits, params) : TakeTopP(logits, params);
  double sum = 0;
  for (int i = 0; i < taken; ++i) sum += weights_[static_cast<size_t>(i)];
  double left = static_cast<double>(u) * sum;
  for (int i = 0; i < taken; ++i) {
    left -= weights_[static_cast<size_t>(i)];
    if (left < 0) return candidates_[static_cast<size_t>(i)];
  }
  return candidates_[0];
}

int Sampler::TakeTopK(std::span<const float> logits, const SamplerParams& params) {
  const Better better{logits};
  const size_t k = std::min(static_cast<size_t>(params.top_k), logits.size());
  // The best so far, as a heap with the worst of them on top, which hardly any of the others passes.
  const auto end = candidates_.begin() + static_cast<ptrdiff_t>(k);
  std::iota(candidates_.begin(), end, 0);
  std::make_heap(candidates_.begin(), end, better);
  float worst = logits[static_cast<size_t>(candidates_[0])];
  for (size_t i = k; i < logits.size(); ++i) {
    if (!(logits[i] > worst)) continue;  // an equal one has the lower id, and stays
    std::pop_heap(candidates_.begin(), end, better);
    candidates_[k - 1] = static_cast<int32_t>(i);
    std::push_heap(candidates_.begin(), end, better);
    worst = logits[static_cast<size_t>(candidates_[0])];
  }
  std::sort_heap(candidates_.begin(), end, better);
  const float max = logits[static_cast<size_t>(candidates_[0])];
  double mass = 0;
  for (size_t i = 0; i < k; ++i) {
    weights_[i] = std::exp((logits[static_cast<size_t>(candidates_[i])] - max) / params.temperature);
    mass += weights_[i];
  }
  if (params.top_p >= 1) return static_cast<int>(k);
  // A share of the mass that top_k left.
  const double enough = static_cast<double>(params.top_p) * mass;
  size_t kept = 0;
  double sum = 0;
  do {
    sum += weights_[kept++];
  } while (kept < k && sum < enough);
  return static_cast<int>(kept);
}

int Sampler::TakeTopP(std::span<const float> logits, const SamplerParams& params) {
  // How many it will be is not known: a heap of all, the best on top.
  const size_t vocab = logits.size();
  const auto worse = [better = Better{logits}](int32_t a, int32_t b) { return better(b, a); };
  std::iota(candidates_.begin(), candidates_.end(), 0);
  std::make_heap(candidates_.begin(), candidates_.end(), worse);
  const float max = logits[static_cast<size_t>(candidates_[0])];
  double mass = 0;
  for (size_t i = 0; i < vocab; ++i) mass += std::exp((logits[i] - max) / params.temperature);
  double sum = 0;
  size_t taken = 0;
  do {
    const auto end = candidates_.end() - static_cast<ptrdiff_t>(taken);
    std::pop_heap(candidates_.begin(), end, worse);
    weights_[taken] = std::exp((logits[static_cast<size_t>(*std::prev(end))] - max) / params.temperature);
    sum += weights_[taken++];
  } while (taken < vocab && sum < static_cast<double>(params.top_p) * mass);
  std::reverse(candidates_.begin(), candidates_.end());
  return static_cast<int>(taken);
}

float LogprobOf(const kernels::KernelTable& kernels, std::span<const float> logits, int32_t token_id) {
  return logits[static_cast<size_t>(token_id)] - kernels.log_sum_exp(logits.data(), static_cast<int>(logits.size()));
}

void TopLogprobs(const kernels::KernelTable& kernels, std::span<const float> logits, std::span<Logprob> out) {
  if (out.empty()) return;
  size_t n = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (n == out.size() && !(logits[i] > out[n - 1].logprob)) continue;
    size_t at = n < out.size() ? n++ : n - 1;
    for (; at > 0 && logits[i] > out[at - 1].logprob; --at) out[at] = out[at - 1];
    out[at] = {static_cast<int32_t>(i), logits[i]};
  }
  const float lse = kernels.log_sum_exp(logits.data(), static_cast<int>(logits.size()));
  for (Logprob& p : out) p.logprob -= lse;
}

}  // namespace scion
