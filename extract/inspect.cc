#include "extract/inspect.h"

#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/check_lock.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

uint64_t ParametersOf(std::span<const TensorInfo> tensors) {
  uint64_t parameters = 0;
  for (const TensorInfo& tensor : tensors) {
    // Route tables are data, not parameters.
    if (tensor.dtype == DType::kI32) continue;
    parameters += tensor.bytes / DTypeBytes(tensor.dtype) * static_cast<uint64_t>(DTypeBlockElements(tensor.dtype));
  }
  return parameters;
}

// types: {"Q4_0": bytes of data, ...}
void AddBytesByType(std::span<const TensorInfo> tensors, Json& types) {
  for (const TensorInfo& tensor : tensors) {
    const std::string type(DTypeName(tensor.dtype));
    types[type] = types.value(type, uint64_t{0}) + tensor.bytes;
  }
}

Json Parts(const Checkpoint& checkpoint) {
  Json parts = Json::array();
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    const CheckpointFile& file = checkpoint.files()[i];
    const std::string name = PartName(checkpoint, file);
    if (i == 0 || PartName(checkpoint, checkpoint.files()[i - 1]) != name) {
      parts.push_back({{"name", file.domain.has_value() ? name : "trunk"},
                       {"parameters", 0},
                       {"bytes", 0},
                       {"types", Json::object()},
                       {"files", Json::array()}});
      if (file.domain.has_value()) {
        parts.back()["experts"] = checkpoint.spec().domains[static_cast<size_t>(*file.domain)].num_experts;
      }
    }
    Json& part = parts.back();
    part["parameters"] = part["parameters"].get<uint64_t>() + ParametersOf(TensorsOf(checkpoint, static_cast<int>(i)));
    part["bytes"] = part["bytes"].get<uint64_t>() + file.file.size();
    AddBytesByType(TensorsOf(checkpoint, static_cast<int>(i)), part["types"]);
    part["files"].push_back({{"path", file.path}, {"bytes", file.file.size()}, {"generation", file.generation}});
  }
  return parts;
}

Json LockSummary(const LockFile* lock) {
  if (lock == nullptr) return nullptr;
  return {{"lock_sha256", LockSha256(*lock)}, {"lineage", LineageJson(*lock)}};
}

std::string Join(const Json& list) {
  std::string text;
  for (const Json& item : list) {
    absl::StrAppend(&text, text.empty() ? "" : ",", item.is_string() ? item.get<std::string>() : item.dump());
  }
  return text;
}

}  // namespace

absl::StatusOr<Json> Inspect(const std::filesystem::path& directory) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return Annotate(checkpoint.status(), directory.string());
  return Describe(**checkpoint);
}

Json Describe(const Checkpoint& checkpoint) {
  const std::filesystem::path& directory = checkpoint.directory();
  const ModelSpec& spec = checkpoint.spec();
  int num_experts_per_tok = 0;
  for (const int layer : spec.SparseLayers()) {
    num_experts_per_tok = spec.layers[static_cast<size_t>(layer)].ffn.num_experts_per_tok;
  }
  uint64_t bytes = 0;
  for (const CheckpointFile& file : checkpoint.files()) bytes += file.file.size();
  Json types = Json::object();
  AddBytesByType(checkpoint.tensors(), types);
  std::error_code error;
  return Json{{"directory", directory.string()},
              {"model_type", spec.model_type},
              {"dtype", DTypeName(spec.dtype)},
              {"vocab_size", spec.vocab_size},
              {"hidden_size", spec.hidden_size},
              {"max_position_embeddings", spec.max_position_embeddings},
              {"num_hidden_layers", spec.layers.size()},
              {"sparse_layers", spec.SparseLayers()},
              {"num_experts_per_tok", num_experts_per_tok},
              {"default_domain", spec.domains[static_cast<size_t>(spec.default_domain)].name},
              {"parameters", ParametersOf(checkpoint.tensors())},
              {"bytes", bytes},
              {"types", std::move(types)},
              {"tokenizer", std::filesystem::exists(directory / "tokenizer.json", error)},
              {"parts", Parts(checkpoint)},
              {"lock", LockSummary(checkpoint.lock())}};
}

std::string InspectTable(const Json& model) {
  std::string text = absl::StrFormat(
      "%s: %s, %s, %d layers (sparse: %s), hidden size %d, vocabulary %d, context %d\n",
      model["directory"].get<std::string>(), model["model_type"].get<std::string>(), model["dtype"].get<std::string>(),
      model["num_hidden_layers"].get<int>(), model["sparse_layers"].empty() ? "none" : Join(model["sparse_layers"]),
      model["hidden_size"].get<int>(), model["vocab_size"].get<int>(), model["max_position_embeddings"].get<int>());
  absl::StrAppendFormat(&text, "%-16s %8s %12s %12s %4s  %s\n", "part", "experts", "parameters", "bytes", "gen",
                        "file");
  for (const Json& part : model["parts"]) {
    const std::string experts = part.contains("experts") ? part["experts"].dump() : "-";
    std::string name = part["name"].get<std::string>() + (part["name"] == model["default_domain"] ? " *" : "");
    std::string parameters = part["parameters"].dump();
    for (const Json& file : part["files"]) {
      absl::StrAppendFormat(&text, "%-16s %8s %12s %12d %4d  %s\n", name, name.empty() ? "" : experts, parameters,
                            file["bytes"].get<uint64_t>(), file["generation"].get<uint64_t>(),
                            file["path"].get<std::string>());
      name.clear();  // further files of the same part
      parameters.clear();
    }
  }
  absl::StrAppendFormat(&text, "%-16s %8s %12d %12d\n", "all", "", model["parameters"].get<uint64_t>(),
                        model["bytes"].get<uint64_t>());
  absl::StrAppendFormat(&text, "* default domain; experts are per sparse layer, %d per token\n",
                        model["num_experts_per_tok"].get<int>());
  std::string types;
  for (const auto& [type, bytes] : model["types"].items()) {
    absl::StrAppendFormat(&types, "%s%s %d bytes", types.empty() ? "" : ", ", type, bytes.get<uint64_t>());
  }
  absl::StrAppendFormat(&text, "types: %s\n", types);
  absl::StrAppendFormat(&text, "tokenizer: %s\n", model["tokenizer"].get<bool>() ? "tokenizer.json" : "none");
  if (model["lock"].is_null()) return text + "lock: none\n";
  absl::StrAppendFormat(&text, "lock: %s\n", model["lock"]["lock_sha256"].get<std::string>());
  for (const Json& entry : model["lock"]["lineage"]) {
    absl::StrAppendFormat(&text, "  %s %s of %s by version %s: %s\n", entry["time"].get<std::string>(),
                          entry["verb"].get<std::string>(), entry["source"].get<std::string>(),
                          entry["version"].get<std::string>(), Join(entry["domains"]));
  }
  return text;
}

absl::StatusOr<std::vector<Difference>> CheckHashes(const std::filesystem::path& directory, std::FILE* log) {
  SCION_ASSIGN_OR_RETURN(const std::optional<LockFile> lock, ReadLock(directory));
  if (!lock.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory.string(), " has no ", ToAbsl(kLockFileName), " to check against"));
  }
  Progress progress(log, "hashing", LockedBytes(*lock), Progress::Unit::kBytes);
  return CheckAgainstLock(directory, *lock, progress);
}

}  // namespace scion
