#include "engine/model/tensor_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/model/gate_config.h"

namespace scion {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

class TensorChecker {
 public:
  explicit TensorChecker(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()), used_(checkpoint.tensors().size()) {}

  absl::Status Check() {
    SCION_RETURN_IF_ERROR(CheckOwners());
    SCION_RETURN_IF_ERROR(CheckTrunk());
    for (int layer : spec_.SparseLayers()) {
      if (spec_.layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kGate) {
        SCION_RETURN_IF_ERROR(CheckGateRouted(layer));
        continue;
      }
      for (size_t d = 0; d < spec_.domains.size(); ++d) SCION_RETURN_IF_ERROR(CheckGroup(layer, static_cast<int>(d)));
    }
    return RefuseUnusedTensors();
  }

 private:
  const std::string& FileOf(const TensorInfo& tensor) const {
    return checkpoint_.files()[static_cast<size_t>(tensor.file)].path;
  }

  absl::Status Error(const TensorInfo& tensor, std::string_view message) const {
    return absl::DataLossError(absl::StrCat(FileOf(tensor), ": tensor ", Quoted(tensor.name), ": ", ToAbsl(message)));
  }

  // Where a tensor that is missing should have been.
  std::string PlaceOf(std::optional<int> domain) const {
    std::vector<std::string> paths;
    for (const CheckpointFile& file : checkpoint_.files()) {
      if (file.domain == domain) paths.push_back(file.path);
    }
    return paths.size() == 1 ? paths[0] : absl::StrCat("trunk files (", paths.size(), ")");
  }

  absl::Status CheckOwners() const {
    if (spec_.model_type != "scion") return absl::OkStatus();
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      const std::optional<int> owner = checkpoint_.files()[static_cast<size_t>(tensor.file)].domain;
      const std::optional<std::string_view> claimed = DomainOfTensor(tensor.name);
      if (!claimed.has_value()) {
        if (!owner.has_value()) continue;
        return Error(tensor, absl::StrCat("belongs to the trunk, but lies in the file of domain ",
                                          Quoted(spec_.domains[static_cast<size_t>(*owner)].name)));
      }
      const std::optional<int> domain = spec_.FindDomain(*claimed);
      if (!domain.has_value())
        return Error(tensor, absl::StrCat("domain ", Quoted(*claimed), " is not in config.json"));
      if (owner != domain) {
        return Error(tensor, absl::StrCat("belongs to domain ", Quoted(*claimed), ", but lies in the file of ",
                                          owner.has_value() ? Quoted(spec_.domains[static_cast<size_t>(*owner)].name)
                                                            : std::string("the trunk")));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<const TensorInfo*> Require(const std::string& name, const std::vector<int64_t>& shape,
                                            std::optional<int> domain) {
    absl::StatusOr<const TensorInfo*> found = checkpoint_.Find(name);
    if (!found.ok())
      return absl::DataLossError(absl::StrCat(PlaceOf(domain), ": tensor ", Quoted(name), " is missing"));
    const TensorInfo& tensor = **found;
    used_[static_cast<size_t>(&tensor - checkpoint_.tensors().data())] = true;
    if (tensor.shape != shape) {
      return Error(tensor, absl::StrCat("shape ", ShapeText(tensor.shape), ", but ", ToAbsl(spec_source_), " asks for ",
                                        ShapeText(shape)));
    }
    return &tensor;
  }

  absl::Status RequireFloats(const std::string& name, const std::vector<int64_t>& shape, std::optional<int> domain) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, Require(name, shape, domain));
    return CheckFloats(*tensor);
  }

  absl::Status CheckFloats(const TensorInfo& tensor) const {
    if (tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16)
      return absl::OkStatus();
    return Error(tensor, absl::StrCat("dtype ", ToAbsl(DTypeName(tensor.dtype)), ", but F32, F16 or BF16 is needed"));
  }

  // Floats, or blocks of quantised weights.
  absl::Status RequireMatrix(const std::string& name, const std::vector<int64_t>& shape, std::optional<int> domain) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, Require(name, shape, domain));
    return IsQuantized(tensor->dtype) ? absl::OkStatus() : CheckFloats(*tensor);
  }

  // gate, up [intermediate_size, hidden_size]; down [hidden_size, intermediate_size]
  absl::Status CheckFfn(absl::FunctionRef<std::string(std::string_view projection)> name, int64_t intermediate_size,
                        std::optional<int> domain) {
    const int64_t hidden = spec_.hidden_size;
    SCION_RETURN_IF_ERROR(RequireMatrix(name("gate"), {intermediate_size, hidden}, domain));
    SCION_RETURN_IF_ERROR(RequireMatrix(name("up"), {intermediate_size, hidden}, domain));
    return RequireMatrix(name("down"), {hidden, intermediate_size}, domain);
  }

  absl::Status CheckTrunk() {
    const int64_t hidden = spec_.hidden_size;
    SCION_RETURN_IF_ERROR(RequireMatrix("model.embed_tokens.weight", {spec_.vocab_size, hidden}, std::nullopt));
    SCION_RETURN_IF_ERROR(RequireFloats("model.norm.weight", {hidden}, std::nullopt));
    if (!spec_.tie_word_embeddings) {
      SCION_RETURN_IF_ERROR(RequireMatrix("lm_head.weight", {spec_.vocab_size, hidden}, std::nullopt));
    }
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      const LayerSpec& layer = spec_.layers[l];
      const std::string prefix = TrunkTensorName(static_cast<int>(l), "");
      const int64_t q_rows = int64_t{layer.attention.num_heads} * layer.attention.head_dim;
      const int64_t kv_rows = int64_t{layer.attention.num_kv_heads} * layer.attention.head_dim;
      SCION_RETURN_IF_ERROR(RequireFloats(prefix + "input_layernorm.weight", {hidden}, std::nullopt));
      SCION_RETURN_IF_ERROR(RequireFloats(prefix + "post_attention_layernorm.weight", {hidden}, std::nullopt));
      SCION_RETURN_IF_ERROR(RequireMatrix(prefix + "self_attn.q_proj.weight", {q_rows, hidden}, std::nullopt));
      SCION_RETURN_IF_ERROR(RequireMatrix(prefix + "self_attn.k_proj.weight", {kv_rows, hidden}, std::nullopt));
      SCION_RETURN_IF_ERROR(RequireMatrix(prefix + "self_attn.v_proj.weight", {kv_rows, hidden}, std::nullopt));
      SCION_RETURN_IF_ERROR(RequireMatrix(prefix + "self_attn.o_proj.weight", {hidden, q_rows}, std::nullopt));
      if (layer.attention.qk_norm) {
        const int64_t head_dim = layer.attention.head_dim;
        SCION_RETURN_IF_ERROR(RequireFloats(prefix + "self_attn.q_norm.weight", {head_dim}, std::nullopt));
        SCION_RETURN_IF_ERROR(RequireFloats(prefix + "self_attn.k_norm.weight", {head_dim}, std::nullopt));
      }
      if (layer.ffn.router == RouterKind::kNone) {
        const auto name = [&](std::string_view projection) {
          return absl::StrCat(prefix, "mlp.", ToAbsl(projection), "_proj.weight");
        };
        SCION_RETURN_IF_ERROR(CheckFfn(name, layer.ffn.intermediate_size, std::nullopt));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckGateRouted(int layer) {
    const int num_experts = spec_.domains[0].num_experts;
    SCION_RETURN_IF_ERROR(RequireFloats(GateTensorName(spec_, layer), {num_experts, spec_.hidden_size}, std::nullopt));
    for (int e = 0; e < num_experts; ++e) {
      const auto name = [&](std::string_view projection) {
        return GateRoutedExpertTensorName(spec_, layer, e, projection);
      };
      SCION_RETURN_IF_ERROR(
          CheckFfn(name, spec_.layers[static_cast<size_t>(layer)].ffn.intermediate_size, std::nullopt));
    }
    return absl::OkStatus();
  }

  absl::Status CheckGroup(int layer, int domain) {
    const FfnSpec& ffn = spec_.layers[static_cast<size_t>(layer)].ffn;
    const DomainSpec& group = spec_.domains[static_cast<size_t>(domain)];
    for (int e = 0; e < group.num_experts; ++e) {
      const auto name = [&](std::string_view projection) { return ExpertTensorName(layer, group.name, e, projection); };
      SCION_RETURN_IF_ERROR(CheckFfn(name, ffn.intermediate_size, domain));
    }
    SCION_ASSIGN_OR_RETURN(const TensorInfo* route, Require(RouteTensorName(layer, group.name),
                                                            {ffn.num_experts_per_tok, spec_.vocab_size}, domain));
    if (route->dtype != DType::kI32) {
      return Error(*route, absl::StrCat("dtype ", ToAbsl(DTypeName(route->dtype)), ", but I32 is needed"));
    }
    SCION_RETURN_IF_ERROR(CheckRouteEntries(*route, group));
    const std::string weight_name = RouteWeightTensorName(layer, group.name);
    if (!checkpoint_.Find(weight_name).ok()) return absl::OkStatus();
    SCION_ASSIGN_OR_RETURN(const TensorInfo* weight, Require(weight_name, {ffn.num_experts_per_tok}, domain));
    if (weight->dtype != DType::kF32) {
      return Error(*weight, absl::StrCat("dtype ", ToAbsl(DTypeName(weight->dtype)), ", but F32 is needed"));
    }
    SCION_ASSIGN_OR_RETURN(const std::vector<float> weights, checkpoint_.ReadFloats(*weight));
    if (!std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); })) {
      return Error(*weight, "contains a weight that is not finite");
    }
    return absl::OkStatus();
  }

  absl::Status CheckRouteEntries(const TensorInfo& route, const DomainSpec& group) {
    const uint64_t num_entries = route.bytes / sizeof(int32_t);
    for (uint64_t first = 0; first < num_entries; first += entries_.size()) {
      const std::span<int32_t> entries(entries_.data(), std::min<uint64_t>(entries_.size(), num_entries - first));
      SCION_RETURN_IF_ERROR(checkpoint_.Read(route, first * sizeof(int32_t), std::as_writable_bytes(entries)));
      for (size_t i = 0; i < entries.size(); ++i) {
        if (entries[i] >= 0 && entries[i] < group.num_experts) continue;
        const uint64_t vocab_size = static_cast<uint64_t>(spec_.vocab_size);
        return Error(route, absl::StrCat("row ", (first + i) / vocab_size, ", token ", (first + i) % vocab_size,
                                         ": expert ", entries[i], " is outside [0, ", group.num_experts, ")"));
      }
    }
    return absl::OkStatus();
  }

  // Whether a trunk holds what the model needs and nothing else, so that whatever else is there (a shared expert, a
  // bias) would change what it computes.
  bool RefusesUnused(const TensorInfo& tensor) const {
    if (checkpoint_.is_gguf()) return true;
    if (!IsGateRouted(spec_.model_type)) return false;
    // What follows from the config, and a second copy of a tied embedding, change nothing.
    return !tensor.name.ends_with(".rotary_emb.inv_freq") &&
           !(spec_.tie_word_embeddings && tensor.name == "lm_head.weight");
  }

  absl::Status RefuseUnusedTensors() const {
    for (size_t t = 0; t < used_.size(); ++t) {
      const TensorInfo& tensor = checkpoint_.tensors()[t];
      if (used_[t]) continue;
      if (RefusesUnused(tensor)) {
        return absl::UnimplementedError(absl::StrCat(
            FileOf(tensor), ": tensor ", Quoted(tensor.name), ": a model of type ", Quoted(spec_.model_type), " as ",
            ToAbsl(spec_source_), " describe", checkpoint_.is_gguf() ? "" : "s", " it has no use for it"));
      }
      if (checkpoint_.files()[static_cast<size_t>(tensor.file)].domain.has_value()) {
        return Error(tensor, "config.json does not ask for it");
      }
    }
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const std::string_view spec_source_ = checkpoint_.is_gguf() ? "the metadata" : "config.json";
  std::vector<bool> used_;  // per tensor of the checkpoint
  std::vector<int32_t> entries_ = std::vector<int32_t>(16384);
};

}  // namespace

absl::Status CheckTensors(const Checkpoint& checkpoint) { return TensorChecker(checkpoint).Check(); }

}  // namespace scion
