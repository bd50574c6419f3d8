// Prompts, as token ids, that visit every expert of every sparse layer of a domain. The route is known from the token
// ids alone, so that full coverage is a matter of choosing tokens, not of luck.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scion {

// The route of one sparse layer in one domain.
struct RouteTable {
  int layer = 0;
  int num_experts = 0;
  // [num_experts_per_tok, vocab_size], each in [0, num_experts).
  std::vector<int32_t> expert_of_token;
};

struct CoverOptions {
  // Different tokens through each expert, where the table has so many.
  int visits_per_expert = 4;
  int max_prompt_tokens = 512;  // of the long prompt; never more than the context
};

// Short prompts of mixed lengths that visit each expert with visits_per_expert different tokens, or with all tokens
// that lead to it if those are fewer; then one prompt as long as the options allow. The same tables give the same
// prompts. An expert to which no token leads is visited by no prompt: see CountReachable.
std::vector<std::vector<int32_t>> MakeCoverPrompts(std::span<const RouteTable> tables, int vocab_size, int context,
                                                   const CoverOptions& options = {});

// Experts of the layer to which at least one token leads.
int CountReachable(const RouteTable& table);

}  // namespace scion
