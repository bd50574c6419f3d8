// config.json and generation_config.json, on any text. Whatever is accepted must be within the limits of the engine.
// A line of dashes separates the two texts.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/model/model_spec.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

bool IsWithin(int64_t value, int64_t min, int64_t max) { return value >= min && value <= max; }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr std::string_view kSeparator = "\n----\n";
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t separator = text.find(kSeparator);
  const std::string_view generation_config =
      separator == text.npos ? std::string_view() : text.substr(separator + kSeparator.size());
  const auto spec = scion::ParseModelSpec(text.substr(0, separator), generation_config);
  if (!spec.ok()) return 0;
  Check(IsWithin(spec->vocab_size, 1, scion::kMaxVocabSize));
  Check(IsWithin(spec->hidden_size, 1, scion::kMaxHiddenSize));
  Check(IsWithin(spec->max_position_embeddings, 1, scion::kMaxPositions));
  Check(IsWithin(static_cast<int64_t>(spec->layers.size()), 1, scion::kMaxLayers));
  Check(spec->rms_norm_eps > 0 && spec->rms_norm_eps < 1);
  for (const scion::LayerSpec& layer : spec->layers) {
    Check(IsWithin(layer.attention.num_kv_heads, 1, layer.attention.num_heads));
    Check(layer.attention.num_heads % layer.attention.num_kv_heads == 0);
    Check(IsWithin(layer.attention.head_dim, 16, scion::kMaxHeadDim) && layer.attention.head_dim % 16 == 0);
    Check(IsWithin(int64_t{layer.attention.num_heads} * layer.attention.head_dim, 1, scion::kMaxHiddenSize));
    Check(IsWithin(layer.ffn.intermediate_size, 1, scion::kMaxIntermediateSize));
    Check(IsWithin(layer.ffn.num_experts_per_tok, 1, scion::kMaxExpertsPerToken));
  }
  Check(IsWithin(static_cast<int64_t>(spec->domains.size()), 1, scion::kMaxDomains));
  for (const scion::DomainSpec& domain : spec->domains) {
    Check(scion::IsValidDomainName(domain.name));
    Check(IsWithin(domain.num_experts, spec->SparseLayers().empty() ? 0 : 1, scion::kMaxExpertsPerDomain));
  }
  Check(IsWithin(spec->default_domain, 0, static_cast<int64_t>(spec->domains.size()) - 1));
  if (spec->bos_token_id.has_value()) Check(IsWithin(*spec->bos_token_id, 0, spec->vocab_size - 1));
  for (int id : spec->eos_token_ids) Check(IsWithin(id, 0, spec->vocab_size - 1));
  return 0;
}
