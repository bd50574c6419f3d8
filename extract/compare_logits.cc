#include "extract/compare_logits.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/base/status.h"

namespace scion {
namespace {

int FirstDifference(std::span<const float> a, std::span<const float> b) {
  size_t i = 0;
  while (i < a.size() && std::bit_cast<uint32_t>(a[i]) == std::bit_cast<uint32_t>(b[i])) ++i;
  return static_cast<int>(i);
}

}  // namespace

absl::StatusOr<KvCache> MakeKvCache(const Model& model, size_t num_tokens) {
  const int tokens = static_cast<int>(num_tokens);
  const int num_blocks = (tokens + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  return KvCache::Create(model.KvPlanes(), kernels::kKvBlockTokens, num_blocks);
}

absl::StatusOr<std::optional<LogitDifference>> CompareLogits(ModelUnderTest whole, ModelUnderTest cut,
                                                             std::span<const std::vector<int32_t>> prompts,
                                                             Progress& progress) {
  size_t longest = 0;
  for (const std::vector<int32_t>& prompt : prompts) longest = std::max(longest, prompt.size());
  SCION_ASSIGN_OR_RETURN(KvCache whole_cache, MakeKvCache(*whole.model, longest));
  SCION_ASSIGN_OR_RETURN(KvCache cut_cache, MakeKvCache(*cut.model, longest));
  const size_t vocab_size = static_cast<size_t>(whole.model->spec().vocab_size);
  std::vector<float> expected(longest * vocab_size);
  std::optional<LogitDifference> difference;
  for (size_t p = 0; p < prompts.size() && !difference.has_value(); ++p) {
    SCION_RETURN_IF_ERROR(RunPrompt(
        *whole.model, whole_cache, whole.domain, prompts[p], [&](int position, std::span<const float> logits) {
          std::copy(logits.begin(), logits.end(), expected.begin() + position * static_cast<ptrdiff_t>(vocab_size));
        }));
    SCION_RETURN_IF_ERROR(
        RunPrompt(*cut.model, cut_cache, cut.domain, prompts[p], [&](int position, std::span<const float> logits) {
          const auto whole_logits = std::span(expected).subspan(static_cast<size_t>(position) * vocab_size, vocab_size);
          if (difference.has_value() || std::memcmp(whole_logits.data(), logits.data(), logits.size_bytes()) == 0)
            return;
          const int token = FirstDifference(whole_logits, logits);
          difference = {.prompt = static_cast<int>(p),
                        .position = position,
                        .token = token,
                        .whole = whole_logits[static_cast<size_t>(token)],
                        .cut = logits[static_cast<size_t>(token)]};
        }));
    progress.Advance(2 * prompts[p].size());
  }
  return difference;
}

}  // namespace scion
