#include "engine/route/gate_router.h"

#include <cmath>
#include <limits>

namespace scion {

void ChooseExperts(std::span<const float> scores, bool normalise, std::span<int32_t> experts,
                   std::span<float> weights) {
  const auto score = [&](size_t e) {
    return std::isnan(scores[e]) ? -std::numeric_limits<float>::infinity() : scores[e];
  };
  // Insertion into a sorted list: k is small.
  size_t filled = 0;
  for (size_t e = 0; e < scores.size(); ++e) {
    size_t at = filled;
    while (at > 0 && score(e) > score(static_cast<size_t>(experts[at - 1]))) --at;
    if (at == experts.size()) continue;
    if (filled < experts.size()) ++filled;
    for (size_t i = filled - 1; i > at; --i) experts[i] = experts[i - 1];
    experts[at] = static_cast<int32_t>(e);
  }
  // With the largest score taken off, no exponential overflows. Where the sum is not positive and finite, the weights
  // are NaN and show it.
  const float largest = scores[static_cast<size_t>(experts[0])];
  float all = 0.0f;
  for (float s : scores) all += std::exp(s - largest);
  float chosen = 0.0f;
  for (size_t i = 0; i < experts.size(); ++i) {
    weights[i] = std::exp(scores[static_cast<size_t>(experts[i])] - largest) / all;
    chosen += weights[i];
  }
  if (!normalise) return;
  for (float& w : weights) w /= chosen;
}

}  // namespace scion
