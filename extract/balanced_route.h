// A new route table of one sparse layer and domain: random, and balanced (PanGu-Σ, arXiv:2303.10845, section 2.2).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scion {

struct BalancedRoute {
  std::vector<int32_t> expert_of_token;  // [vocab_size], each in [0, num_experts)
  // Of the tokens' mass, or of their number without a histogram; the smallest and the largest among the experts.
  double smallest_share = 0;
  double largest_share = 0;
};

// mass: [vocab_size], how often each token comes, or empty. Tokens go to the expert of the least mass so far, heavy
// ones first: the order is random among those of like mass (within a factor of two), so that every table is another.
// Tokens without mass go to the expert of the fewest tokens. The least and the heaviest expert differ by at most one
// token's mass, or one token. The same arguments give the same table on every machine. stream: which table of those
// that a seed gives. num_experts <= vocab_size.
BalancedRoute MakeBalancedRoute(std::span<const uint64_t> mass, int vocab_size, int num_experts, uint64_t seed,
                                uint64_t stream);

}  // namespace scion
