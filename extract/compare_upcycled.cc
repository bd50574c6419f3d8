#include "extract/compare_upcycled.h"

#include <map>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "extract/companion_files.h"
#include "extract/lock_builder.h"
#include "extract/safetensors_writer.h"
#include "extract/tokenizer_json.h"
#include "extract/upcycle_config.h"

namespace scion {
namespace {

// Names of the experts' matrices -> those of the parent's FFNs.
std::map<std::string, std::string> ParentsOfExperts(const ModelSpec& spec) {
  std::map<std::string, std::string> parents;
  for (const int layer : spec.SparseLayers()) {
    for (const char* projection : {"gate", "up", "down"}) {
      const std::string parent = TrunkTensorName(layer, absl::StrCat("mlp.", projection, "_proj.weight"));
      for (const DomainSpec& domain : spec.domains) {
        for (int e = 0; e < domain.num_experts; ++e) {
          parents[ExpertTensorName(layer, domain.name, e, projection)] = parent;
        }
      }
    }
  }
  return parents;
}

// What Upcycle writes for the model's own domains and layers.
absl::StatusOr<Json> ExpectedConfig(const Checkpoint& dense, const Checkpoint& model) {
  const ModelSpec& spec = model.spec();
  SCION_ASSIGN_OR_RETURN(const Json own,
                         ParseJson(model.config(), "config.json", {.max_bytes = model.config().size()}));
  std::vector<NewTensor> tensors;
  for (const TensorInfo& tensor : model.tensors()) tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  SCION_ASSIGN_OR_RETURN(const std::string text,
                         UpcycledConfig(dense,
                                        {.sparse_layers = spec.SparseLayers(),
                                         .domains = spec.domains,
                                         .default_domain = spec.domains[static_cast<size_t>(spec.default_domain)].name,
                                         .routes = own.value("routes", Json())},
                                        tensors));
  return ParseJson(text, "config.json", {.max_bytes = text.size()});
}

// The tokenizer's files, written anew from the vocabulary of a GGUF parent.
absl::StatusOr<std::vector<Difference>> CompareTokenizer(const Checkpoint& dense, const Checkpoint& model) {
  std::map<std::string, std::string> expected;
  if (dense.vocabulary() != nullptr) {
    SCION_ASSIGN_OR_RETURN(expected["tokenizer.json"], TokenizerJson(*dense.vocabulary()));
    expected["tokenizer_config.json"] = TokenizerConfigJson(*dense.vocabulary());
  }
  std::vector<Difference> differences;
  SCION_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListCompanionFiles(model.directory()));
  for (const std::string& name : names) {
    if (!expected.contains(name)) differences.push_back({name, "", "is not in the source"});
  }
  for (const auto& [name, text] : expected) {
    const absl::StatusOr<std::string> found = ReadTextInside(model.directory(), name);
    if (!found.ok()) {
      differences.push_back({name, "", std::string(found.status().message())});
    } else if (*found != text) {
      differences.push_back({name, "", "differs from what the source's vocabulary gives"});
    }
  }
  return differences;
}

}  // namespace

bool IsUpcycled(const Checkpoint& dense, const Checkpoint& model) {
  return dense.spec().SparseLayers().empty() && model.spec().HasDomainFiles();
}

absl::StatusOr<ByteComparison> CompareWithParent(const Checkpoint& dense, const Checkpoint& model, Progress& progress) {
  const std::map<std::string, std::string> parents = ParentsOfExperts(model.spec());
  ByteComparison result;
  std::vector<std::byte> buffer;
  for (const TensorInfo& tensor : model.tensors()) {
    const std::string& path = model.FileOf(tensor).path;
    const auto expert = parents.find(tensor.name);
    if (expert == parents.end() && model.FileOf(tensor).domain.has_value()) continue;  // a route
    const std::string& parent = expert == parents.end() ? tensor.name : expert->second;
    const absl::StatusOr<const TensorInfo*> expected = dense.Find(parent);
    if (!expected.ok()) {
      result.differences.push_back({path, tensor.name, "is not in the source"});
      continue;
    }
    SCION_ASSIGN_OR_RETURN(std::string what,
                           CompareTensor(dense, **expected, model, tensor, "the source", buffer, progress));
    if (!what.empty()) result.differences.push_back({path, tensor.name, std::move(what)});
    ++result.tensors;
    result.bytes += tensor.bytes;
  }
  std::map<std::string, bool> is_ffn;
  for (const auto& [expert, parent] : parents) is_ffn[parent] = true;
  for (const TensorInfo& tensor : dense.tensors()) {
    if (is_ffn.contains(tensor.name) || model.Find(tensor.name).ok()) continue;
    result.differences.push_back(
        {dense.FileOf(tensor).path, tensor.name, "is in the source, but not in the upcycled model"});
  }
  return result;
}

absl::StatusOr<std::vector<Difference>> CompareParentCompanions(const Checkpoint& dense, const Checkpoint& model) {
  SCION_ASSIGN_OR_RETURN(const Json expected, ExpectedConfig(dense, model));
  std::vector<Difference> differences = CompareConfig(expected, model, "an upcycled model of the source");
  SCION_ASSIGN_OR_RETURN(const std::vector<Difference> companions,
                         dense.is_gguf() ? CompareTokenizer(dense, model) : CompareCompanionFiles(dense, model));
  differences.insert(differences.end(), companions.begin(), companions.end());
  return differences;
}

}  // namespace scion
