// The choice that a learned gate makes of one token's experts: softmax over all experts' scores in fp32, the most
// probable ones (Shazeer et al., arXiv:1701.06538; as in Mixtral and Qwen3-MoE).
#pragma once

#include <cstdint>
#include <span>

namespace scion {

// scores [num_experts], finite or not; experts, weights [k], k <= num_experts: the most probable experts in descending
// order, the lower number first on ties, and their probabilities - divided by their sum, if `normalise`. Scores that
// are NaN count as the lowest; the chosen experts are always k different ones.
void ChooseExperts(std::span<const float> scores, bool normalise, std::span<int32_t> experts, std::span<float> weights);

}  // namespace scion
