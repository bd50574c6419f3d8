#include "engine/model/gguf_tensors.h"

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"

namespace scion {
namespace {

struct Name {
  std::string_view gguf, ours;
};

constexpr Name kTopNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Behind "blk.{layer}." and "model.layers.{layer}.".
constexpr Name kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},      {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"}, {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"}, {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},       {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},       {"ffn_gate_inp.weight", "mlp.gate.weight"},
};

constexpr std::string_view kProjections[] = {"gate", "up", "down"};

// "17." at the front: the number, and the text without it. Only as it would be written: no sign, no leading zero.
std::optional<int> TakeNumber(std::string_view& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const size_t length = static_cast<size_t>(end - text.data());
  if (error != std::errc() || number < 0 || length == text.size() || *end != '.') return std::nullopt;
  if (text[0] == '0' && length > 1) return std::nullopt;
  text.remove_prefix(length + 1);
  return number;
}

class Namer {
 public:
  Namer(const std::string& file_name, const ModelSpec& spec) : file_name_(file_name), spec_(spec) {}

  std::vector<TensorInfo> Take() { return std::move(named_); }

  absl::Status Add(TensorInfo tensor) {
    for (const Name& name : kTopNames) {
      if (tensor.name == name.gguf) return Push(std::move(tensor), std::string(name.ours));
    }
    std::string_view rest = tensor.name;
    constexpr std::string_view kPrefix = "blk.";
    if (!rest.starts_with(kPrefix)) return Unknown(tensor);
    rest.remove_prefix(kPrefix.size());
    const std::optional<int> layer = TakeNumber(rest);
    if (!layer.has_value()) return Unknown(tensor);
    if (*layer >= static_cast<int>(spec_.layers.size())) {
      return Damaged(tensor, absl::StrCat("the model has ", spec_.layers.size(), " layers"));
    }
    for (const Name& name : kLayerNames) {
      if (rest != name.gguf) continue;
      const bool is_q_or_k = rest == "attn_q.weight" || rest == "attn_k.weight";
      if (is_q_or_k && spec_.model_type == "llama") {
        tensor.interleaved_head_dim = spec_.layers[static_cast<size_t>(*layer)].attention.head_dim;
      }
      return Push(std::move(tensor), TrunkTensorName(*layer, name.ours));
    }
    if (spec_.layers[static_cast<size_t>(*layer)].ffn.router != RouterKind::kGate) return Unknown(tensor);
    for (std::string_view projection : kProjections) {
      const std::string prefix = absl::StrCat("ffn_", ToAbsl(projection));
      std::string_view end = rest;
      if (!end.starts_with(prefix)) continue;
      end.remove_prefix(prefix.size());
      if (end == "_exps.weight") return Split(tensor, *layer, projection);
      if (!end.starts_with(".")) continue;
      end.remove_prefix(1);
      const std::optional<int> expert = TakeNumber(end);
      if (!expert.has_value() || end != "weight") return Unknown(tensor);
      if (*expert >= NumExperts()) return Damaged(tensor, absl::StrCat("the model has ", NumExperts(), " experts"));
      return Push(std::move(tensor), GateRoutedExpertTensorName(spec_, *layer, *expert, projection));
    }
    return Unknown(tensor);
  }

 private:
  int NumExperts() const { return spec_.domains[0].num_experts; }

  std::string Context(const TensorInfo& tensor) const {
    return absl::StrCat(file_name_, ": tensor ", Quoted(tensor.name), ": ");
  }
  absl::Status Unknown(const TensorInfo& tensor) const {
    return absl::UnimplementedError(
        absl::StrCat(Context(tensor), "this engine has no use for it in a model of type ", Quoted(spec_.model_type)));
  }
  absl::Status Damaged(const TensorInfo& tensor, std::string_view message) const {
    return absl::DataLossError(absl::StrCat(Context(tensor), ToAbsl(message)));
  }

  absl::Status Push(TensorInfo tensor, std::string name) {
    if (named_.size() >= kMaxTensors) {
      return absl::ResourceExhaustedError(
          absl::StrCat(Context(tensor), "more than ", kMaxTensors, " tensors, each expert's counted"));
    }
    tensor.name = std::move(name);
    named_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status Split(const TensorInfo& tensor, int layer, std::string_view projection) {
    std::vector<int64_t> shape = tensor.shape;
    // Writers drop the dimension of a single expert.
    if (shape.size() == 2 && NumExperts() == 1) shape.insert(shape.begin(), 1);
    if (shape.size() != 3) return Damaged(tensor, absl::StrCat(shape.size(), " dimensions, but 3 are needed"));
    if (shape[0] != NumExperts()) {
      return Damaged(tensor, absl::StrCat(shape[0], " experts, but the model has ", NumExperts()));
    }
    const uint64_t bytes = tensor.bytes / static_cast<uint64_t>(shape[0]);
    for (int e = 0; e < NumExperts(); ++e) {
      TensorInfo expert{.name = tensor.name,
                        .dtype = tensor.dtype,
                        .shape = {shape[1], shape[2]},
                        .file = tensor.file,
                        .offset = tensor.offset + static_cast<uint64_t>(e) * bytes,
                        .bytes = bytes};
      SCION_RETURN_IF_ERROR(Push(std::move(expert), GateRoutedExpertTensorName(spec_, layer, e, projection)));
    }
    return absl::OkStatus();
  }

  const std::string& file_name_;
  const ModelSpec& spec_;
  std::vector<TensorInfo> named_;
};

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> NameGgufTensors(GgufHeader header, const ModelSpec& spec) {
  Namer namer(header.metadata.file_name(), spec);
  for (TensorInfo& tensor : header.tensors) SCION_RETURN_IF_ERROR(namer.Add(std::move(tensor)));
  return namer.Take();
}

}  // namespace scion
