#include "extract/export_scion.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/export_hugging_face.h"
#include "extract/export_tensor_writer.h"
#include "extract/new_model.h"
#include "extract/safetensors_writer.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr const char* kConfigurationName = "configuration_scion.py";
constexpr const char* kModelingName = "modeling_scion.py";

NewTensor Written(const ExportTensor& tensor) { return {tensor.name, tensor.type, tensor.shape}; }

absl::Status WriteFile(const Checkpoint& checkpoint, const CheckpointFile& file,
                       std::vector<const ExportTensor*> tensors, NewModel& model, Progress& progress) {
  std::ranges::stable_sort(tensors, std::ranges::greater(),
                           [](const ExportTensor* tensor) { return Written(*tensor).element_width(); });
  std::vector<NewTensor> header;
  uint64_t tensor_bytes = 0;
  for (const ExportTensor* tensor : tensors) {
    header.push_back(Written(*tensor));
    tensor_bytes += tensor->bytes();
  }
  SCION_ASSIGN_OR_RETURN(NewFile out, model.CreateDataFile(file.path));
  SCION_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(std::move(out), std::move(header)));
  for (const ExportTensor* tensor : tensors) {
    SCION_RETURN_IF_ERROR(WriteExportTensor(
        checkpoint, *tensor, [&](std::span<const std::byte> bytes) { return writer.Append(bytes); }, progress));
  }
  SCION_ASSIGN_OR_RETURN(const FileDigest digest, writer.Finish());
  model.AddDataFile(file, digest, tensor_bytes);
  return absl::OkStatus();
}

}  // namespace

std::string ScionExportConfig(std::string_view config_json, DType type) {
  auto config = OrderedJson::parse(config_json);
  config.erase("quantization_config");
  config["torch_dtype"] = config["dtype"] = TorchDTypeName(type);
  config["auto_map"] = {{"AutoConfig", "configuration_scion.ScionConfig"},
                        {"AutoModelForCausalLM", "modeling_scion.ScionForCausalLM"}};
  return config.dump(2) + "\n";
}

absl::Status ExportScion(const Checkpoint& checkpoint, const ExportPlan& plan, const std::filesystem::path& out,
                         std::string version, absl::Time now, Progress& progress) {
  SCION_ASSIGN_OR_RETURN(NewModel model, NewModel::Create(checkpoint, out));
  for (const CheckpointFile& file : checkpoint.files()) {
    std::vector<const ExportTensor*> tensors;
    for (const ExportTensor& tensor : plan.tensors) {
      if (&checkpoint.FileOf(*tensor.parts[0]) == &file) tensors.push_back(&tensor);
    }
    SCION_RETURN_IF_ERROR(WriteFile(checkpoint, file, std::move(tensors), model, progress));
  }
  // A source that was exported itself has the code already, perhaps of another version.
  SCION_RETURN_IF_ERROR(model.CopyCompanions(progress, {kConfigurationName, kModelingName}));
  SCION_RETURN_IF_ERROR(model.WriteCompanion(kConfigurationName, kConfigurationPython));
  SCION_RETURN_IF_ERROR(model.WriteCompanion(kModelingName, kModelingPython));
  std::vector<std::string> domains;
  for (const DomainSpec& domain : checkpoint.spec().domains) domains.push_back(domain.name);
  return model.Commit(ScionExportConfig(checkpoint.config(), plan.main_type()),
                      {.verb = "export", .version = std::move(version), .now = now, .domains = std::move(domains)});
}

}  // namespace scion
