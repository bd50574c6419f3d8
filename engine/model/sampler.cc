#include "engine/model/sampler.h"

#include <algorithm>
#include <cmath>

namespace scion {
namespace {

// Steele, Lea, Flood: SplitMix64's finaliser.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

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
  const size_t vocab = logits.size();
  const auto worse = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x < y : a > b;
  };
  for (size_t i = 0; i < vocab; ++i) candidates_[i] = static_cast<int32_t>(i);
  std::make_heap(candidates_.begin(), candidates_.end(), worse);
  const float max = logits[static_cast<size_t>(candidates_[0])];

  size_t count = params.top_k > 0 ? std::min(vocab, static_cast<size_t>(params.top_k)) : vocab;
  // top_p is a share of the mass that top_k left: with top_k that mass is known only at the end, without it beforehand.
  double mass = 0;
  if (params.top_k <= 0) {
    for (size_t i = 0; i < vocab; ++i) mass += std::exp((logits[i] - max) / params.temperature);
  }
  double sum = 0;
  size_t taken = 0;
  while (taken < count) {
    std::pop_heap(candidates_.begin(), candidates_.end() - static_cast<ptrdiff_t>(taken), worse);
    const float logit = logits[static_cast<size_t>(candidates_[vocab - 1 - taken])];
    weights_[taken] = std::exp((logit - max) / params.temperature);
    sum += weights_[taken++];
    if (params.top_k <= 0 && sum >= static_cast<double>(params.top_p) * mass) break;
  }
  if (params.top_k > 0 && params.top_p < 1) {
    const double enough = static_cast<double>(params.top_p) * sum;
    size_t kept = 0;
    sum = 0;
    do {
      sum += weights_[kept++];
    } while (kept < taken && sum < enough);
    taken = kept;
  }
  double left = static_cast<double>(u) * sum;
  for (size_t i = 0; i < taken; ++i) {
    left -= weights_[i];
    if (left < 0) return candidates_[vocab - 1 - i];
  }
  return candidates_[vocab - 1];
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
