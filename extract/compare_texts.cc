#include "extract/compare_texts.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/base/status.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

size_t Likeliest(std::span<const float> logits) {
  return static_cast<size_t>(std::ranges::max_element(logits) - logits.begin());
}

double LogSum(std::span<const float> logits) {
  const double largest = static_cast<double>(logits[Likeliest(logits)]);
  double sum = 0;
  for (const float v : logits) sum += std::exp(static_cast<double>(v) - largest);
  return largest + std::log(sum);
}

// Sums over scored tokens.
struct Sums {
  double source_loss = 0, loss = 0, divergence = 0;
  int64_t agreeing = 0;

  // Logits of one position, and the token that comes next.
  void Add(std::span<const float> source, std::span<const float> other, int32_t next) {
    const double source_log = LogSum(source), other_log = LogSum(other);
    source_loss += source_log - static_cast<double>(source[static_cast<size_t>(next)]);
    loss += other_log - static_cast<double>(other[static_cast<size_t>(next)]);
    for (size_t v = 0; v < source.size(); ++v) {
      const double a = static_cast<double>(source[v]) - source_log;
      divergence += std::exp(a) * (a - (static_cast<double>(other[v]) - other_log));
    }
    agreeing += Likeliest(source) == Likeliest(other);
  }
};

}  // namespace

absl::StatusOr<TextComparison> CompareTexts(ModelUnderTest source, ModelUnderTest other,
                                            const std::vector<TokenWindow>& windows, Progress& progress) {
  size_t longest = 0;
  for (const TokenWindow& window : windows) longest = std::max(longest, window.size());
  SCION_ASSIGN_OR_RETURN(KvCache source_cache, MakeKvCache(*source.model, longest));
  SCION_ASSIGN_OR_RETURN(KvCache other_cache, MakeKvCache(*other.model, longest));
  const size_t vocab = static_cast<size_t>(source.model->spec().vocab_size);
  std::vector<float> expected(longest * vocab);
  Sums sums;
  TextComparison comparison;
  for (const TokenWindow& window : windows) {
    if (CancelRequested()) return absl::CancelledError("interrupted while texts were compared");
    SCION_RETURN_IF_ERROR(
        RunPrompt(*source.model, source_cache, source.domain, window, [&](int position, std::span<const float> logits) {
          std::ranges::copy(logits,
                            expected.begin() + static_cast<ptrdiff_t>(position) * static_cast<ptrdiff_t>(vocab));
        }));
    SCION_RETURN_IF_ERROR(
        RunPrompt(*other.model, other_cache, other.domain, window, [&](int position, std::span<const float> logits) {
          const size_t next = static_cast<size_t>(position) + 1;
          if (next == window.size()) return;
          sums.Add(std::span(expected).subspan((next - 1) * vocab, vocab), logits, window[next]);
          ++comparison.scored_tokens;
        }));
    progress.Advance(window.size());
  }
  if (comparison.scored_tokens == 0) return absl::InvalidArgumentError("there is no text to compare on");
  const double count = static_cast<double>(comparison.scored_tokens);
  comparison.source_perplexity = std::exp(sums.source_loss / count);
  comparison.perplexity = std::exp(sums.loss / count);
  comparison.kl_divergence = sums.divergence / count;
  comparison.top1_agreement = static_cast<double>(sums.agreeing) / count;
  return comparison;
}

}  // namespace scion
