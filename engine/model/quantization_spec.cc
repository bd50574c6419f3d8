#include "engine/model/quantization_spec.h"

#include <cstdint>
#include <limits>
#include <optional>

#include "engine/base/status.h"
#include "engine/model/config_value.h"
#include "engine/model/safetensors.h"

namespace scion {
namespace {

absl::StatusOr<DType> BlockType(const Json& value, std::string_view what) {
  if (!value.is_string()) return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " must be a string"));
  const std::string& name = value.get_ref<const std::string&>();
  const std::optional<DType> type = ParseBlockType(name);
  if (type.has_value()) return *type;
  std::string known;
  for (DType t : kBlockTypes) absl::StrAppend(&known, known.empty() ? "" : ", ", ToAbsl(DTypeName(t)));
  return absl::UnimplementedError(
      absl::StrCat(ToAbsl(what), " is ", Quoted(name), "; this build knows blocks of ", known));
}

}  // namespace

absl::StatusOr<QuantizationSpec> ParseQuantization(const Json& value) {
  if (!value.is_object()) return absl::InvalidArgumentError("must be an object");
  // First of all, so that another method is refused as what it is and not for its keys.
  if (FindMember(value, "quant_method") == nullptr) return absl::InvalidArgumentError("'quant_method' is missing");
  SCION_RETURN_IF_ERROR(AllowOnly(value, "quant_method", "ggml"));
  QuantizationSpec spec;
  const Json* type = FindMember(value, "type");
  if (type == nullptr) return absl::InvalidArgumentError("'type' is missing");
  SCION_ASSIGN_OR_RETURN(spec.type, BlockType(*type, "'type'"));
  for (const auto& [key, member] : value.items()) {
    if (key == "quant_method" || key == "type") continue;
    if (key != "tensors") return absl::InvalidArgumentError(absl::StrCat("unknown key ", Quoted(key)));
    if (!member.is_object()) return absl::InvalidArgumentError("'tensors' must be an object");
    for (const auto& [name, tensor_type] : member.items()) {
      SCION_ASSIGN_OR_RETURN(spec.tensors[name], BlockType(tensor_type, "the type of tensor " + Quoted(name)));
    }
  }
  return spec;
}

Json QuantizationJson(const QuantizationSpec& spec) {
  Json json = {{"quant_method", "ggml"}, {"type", DTypeName(spec.type)}};
  for (const auto& [name, type] : spec.tensors) json["tensors"][name] = DTypeName(type);
  return json;
}

absl::Status SetBlockTypes(const QuantizationSpec& spec, std::string_view file_name, std::span<TensorInfo> tensors) {
  for (TensorInfo& tensor : tensors) {
    const auto named = spec.tensors.find(tensor.name);
    const bool is_named = named != spec.tensors.end();
    const DType type = is_named ? named->second : spec.type;
    const auto damaged = [&](std::string_view message) {
      return absl::DataLossError(
          absl::StrCat(ToAbsl(file_name), ": tensor ", Quoted(tensor.name), ": ", ToAbsl(message)));
    };
    const bool is_matrix = tensor.dtype == DType::kU8 && tensor.shape.size() == 2;
    if (!is_matrix) {
      if (!is_named) continue;
      return damaged(absl::StrCat("dtype ", ToAbsl(DTypeName(tensor.dtype)), " and ", tensor.shape.size(),
                                  " dimensions, but 'quantization_config' says that it is a matrix of ",
                                  ToAbsl(DTypeName(type)), ", stored as U8"));
    }
    const int64_t block_bytes = static_cast<int64_t>(DTypeBytes(type));
    const int64_t block_elements = DTypeBlockElements(type);
    const int64_t row_bytes = tensor.shape[1];
    if (row_bytes % block_bytes != 0) {
      return damaged(absl::StrCat("rows of ", row_bytes, " bytes are no whole number of ", ToAbsl(DTypeName(type)),
                                  " blocks of ", block_bytes));
    }
    if (row_bytes / block_bytes > std::numeric_limits<int64_t>::max() / block_elements) {
      return damaged("shape overflows 64 bits");
    }
    tensor.dtype = type;
    tensor.shape[1] = row_bytes / block_bytes * block_elements;
  }
  return absl::OkStatus();
}

}  // namespace scion
