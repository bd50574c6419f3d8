#include "extract/cover_prompts.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <utility>

namespace scion {
namespace {

// A fixed permutation of the vocabulary: neighbours in a vocabulary are alike, prompts should be mixed.
std::vector<int32_t> ShuffledTokens(int vocab_size) {
  std::vector<int32_t> tokens(static_cast<size_t>(vocab_size));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::mt19937_64 random(20230310845);
  for (size_t i = tokens.size(); i > 1; --i) std::swap(tokens[i - 1], tokens[random() % i]);
  return tokens;
}

// One pass over the tokens: a token is taken if it leads to an expert that still lacks visits.
std::vector<int32_t> CoveringTokens(std::span<const RouteTable> tables, std::span<const int32_t> tokens,
                                    int visits_per_expert) {
  const size_t vocab_size = tokens.size();
  struct Expert {
    int missing_visits;
    int32_t last_visitor = -1;  // a token whose rows name an expert twice visits it once
  };
  std::vector<std::vector<Expert>> experts;
  for (const RouteTable& table : tables) {
    experts.emplace_back(static_cast<size_t>(table.num_experts), Expert{visits_per_expert});
  }
  std::vector<int32_t> taken;
  for (const int32_t token : tokens) {
    bool useful = false;
    for (size_t t = 0; t < tables.size(); ++t) {
      const std::vector<int32_t>& table = tables[t].expert_of_token;
      for (size_t at = static_cast<size_t>(token); at < table.size(); at += vocab_size) {
        Expert& expert = experts[t][static_cast<size_t>(table[at])];
        if (std::exchange(expert.last_visitor, token) != token) useful |= expert.missing_visits-- > 0;
      }
    }
    if (useful) taken.push_back(token);
  }
  return taken;
}

}  // namespace

std::vector<std::vector<int32_t>> MakeCoverPrompts(std::span<const RouteTable> tables, int vocab_size, int context,
                                                   const CoverOptions& options) {
  // One token; a few; one more than a block of the KV cache; several blocks.
  constexpr std::array<size_t, 4> kLengths = {1, 7, 33, 96};
  const std::vector<int32_t> tokens = ShuffledTokens(vocab_size);
  const std::vector<int32_t> cover = CoveringTokens(tables, tokens, options.visits_per_expert);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t begin = 0; begin < cover.size();) {
    const size_t wanted = std::min(kLengths[prompts.size() % kLengths.size()], static_cast<size_t>(context));
    const size_t end = std::min(begin + wanted, cover.size());
    prompts.emplace_back(cover.begin() + static_cast<ptrdiff_t>(begin), cover.begin() + static_cast<ptrdiff_t>(end));
    begin = end;
  }
  std::vector<int32_t> long_prompt(static_cast<size_t>(std::min(context, options.max_prompt_tokens)));
  for (size_t i = 0; i < long_prompt.size(); ++i) long_prompt[i] = tokens[i % tokens.size()];
  prompts.push_back(std::move(long_prompt));
  return prompts;
}

int CountReachable(const RouteTable& table) {
  std::vector<bool> reached(static_cast<size_t>(table.num_experts));
  for (const int32_t expert : table.expert_of_token) reached[static_cast<size_t>(expert)] = true;
  return static_cast<int>(std::count(reached.begin(), reached.end(), true));
}

}  // namespace scion
