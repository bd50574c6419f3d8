#include "extract/dense_layout.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/base/status.h"

namespace scion {
namespace {

// hidden_size with so many channels: a multiple of the heads, as Transformers wants it, and of the blocks of quantised
// weights, unless that would widen the model by more than an eighth.
int WiderHidden(int hidden_size, int channels, int num_heads) {
  constexpr int kBlock = 32, kSmallBlock = 8;
  if (channels == 0) return hidden_size;
  const auto round_up = [&](int multiple) { return (hidden_size + channels + multiple - 1) / multiple * multiple; };
  const int wider = round_up(std::lcm(num_heads, kBlock));
  return wider - hidden_size <= hidden_size / 8 ? wider : round_up(std::lcm(num_heads, kSmallBlock));
}

bool Same(const AttentionSpec& a, const AttentionSpec& b) {
  return a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim &&
         a.rope_theta == b.rope_theta;
}

}  // namespace

DenseLayout MakeDenseLayout(const ModelSpec& source, int num_experts, int width, bool with_channels) {
  DenseLayout layout{.hidden_size = source.hidden_size, .first_channel = {}};
  int channel = source.hidden_size;
  for (const LayerSpec& layer : source.layers) {
    const bool is_sparse = layer.ffn.router == RouterKind::kTable;
    layout.intermediate_size =
        std::max(layout.intermediate_size, layer.ffn.intermediate_size * (is_sparse ? width : 1));
    layout.first_channel.push_back(is_sparse && with_channels ? channel : -1);
    if (is_sparse && with_channels) channel += num_experts;
  }
  layout.hidden_size =
      WiderHidden(source.hidden_size, channel - source.hidden_size, source.layers[0].attention.num_heads);
  return layout;
}

absl::StatusOr<std::string> DenseConfig(const std::string& source_config, const ModelSpec& source,
                                        const DenseLayout& layout) {
  auto config = nlohmann::ordered_json::parse(source_config, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return absl::DataLossError("config.json has changed while it was read");
  for (const char* key :
       {"auto_map", "default_domain", "domains", "moe_intermediate_size", "num_experts_per_tok", "sparse_layers"}) {
    config.erase(key);
  }
  const AttentionSpec& attention = source.layers[0].attention;
  config["model_type"] = "llama";
  config["architectures"] = {"LlamaForCausalLM"};
  config["hidden_size"] = layout.hidden_size;
  config["intermediate_size"] = layout.intermediate_size;
  config["num_key_value_heads"] = attention.num_kv_heads;
  config["head_dim"] = attention.head_dim;
  config["hidden_act"] = "silu";
  config["attention_bias"] = false;
  config["mlp_bias"] = false;
  config["tie_word_embeddings"] = source.tie_word_embeddings;
  if (layout.is_wider(source)) {
    config["rms_norm_eps"] = config["rms_norm_eps"].get<double>() * source.hidden_size / layout.hidden_size;
  }
  return config.dump(2) + "\n";
}

absl::Status CheckFoldable(const ModelSpec& source) {
  for (const LayerSpec& layer : source.layers) {
    if (layer.ffn.router == RouterKind::kGate) {
      return absl::UnimplementedError(
          absl::StrCat("the experts of model type ", Quoted(source.model_type),
                       " are chosen by a gate on the hidden state; only experts routed by tables can be folded"));
    }
    if (layer.attention.qk_norm) {
      return absl::UnimplementedError("Llama has no norms of queries and keys, which the model's attention has");
    }
    if (!Same(layer.attention, source.layers[0].attention)) {
      return absl::UnimplementedError("Llama has one shape of attention, and the model's layers differ in theirs");
    }
  }
  if (!source.HasDomainFiles()) {
    return absl::FailedPreconditionError("the model has no experts to fold: it is dense already");
  }
  if (source.quantization.has_value()) {
    return absl::FailedPreconditionError("the model is quantised; fold what it was made of, and quantise the fold");
  }
  return absl::OkStatus();
}

}  // namespace scion
