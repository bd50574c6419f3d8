#include "extract/check_donor.h"

#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "extract/compare_bytes.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

constexpr std::array<std::string_view, 5> kVocabularyFiles = {"tokenizer.json", "tokenizer.model", "vocab.json",
                                                              "merges.txt", "added_tokens.json"};

absl::Status Refuse(const Checkpoint& donor, std::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("the donor ", donor.directory().string(), " does not fit: ", ToAbsl(what)));
}

std::string ShapeText(std::span<const int64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

// The very same bytes on the disk.
bool IsSamePlace(const Checkpoint& model, const TensorInfo& a, const Checkpoint& donor, const TensorInfo& b) {
  struct stat of_a, of_b;
  return a.offset == b.offset && a.bytes == b.bytes && ::fstat(model.FileOf(a).file.fd(), &of_a) == 0 &&
         ::fstat(donor.FileOf(b).file.fd(), &of_b) == 0 && of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

bool IsTrunk(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  return !checkpoint.FileOf(tensor).domain.has_value();
}

absl::Status CheckTrunk(const Checkpoint& model, const Checkpoint& donor, Progress& progress) {
  const auto refuse = [&](const TensorInfo& tensor, std::string_view what) {
    return Refuse(donor, absl::StrCat("trunk tensor ", Quoted(tensor.name), " ", ToAbsl(what)));
  };
  for (const TensorInfo& tensor : donor.tensors()) {
    if (IsTrunk(donor, tensor) && !model.Find(tensor.name).ok()) return refuse(tensor, "is not in the model");
  }
  // Shapes before bytes: quick, and what a person needs to hear first.
  for (const TensorInfo& tensor : model.tensors()) {
    if (!IsTrunk(model, tensor)) continue;
    const absl::StatusOr<const TensorInfo*> other = donor.Find(tensor.name);
    if (!other.ok() || !IsTrunk(donor, **other)) return refuse(tensor, "is in the model, but not in the donor");
    if ((*other)->shape != tensor.shape) {
      return refuse(tensor, absl::StrCat("has the shape ", ShapeText((*other)->shape), ", in the model ",
                                         ShapeText(tensor.shape)));
    }
  }
  std::vector<std::byte> buffer;
  for (const TensorInfo& tensor : model.tensors()) {
    if (!IsTrunk(model, tensor)) continue;
    const TensorInfo& other = **donor.Find(tensor.name);
    if (IsSamePlace(model, tensor, donor, other)) continue;
    SCION_ASSIGN_OR_RETURN(const std::string what,
                           CompareTensor(model, tensor, donor, other, "the model", buffer, progress));
    if (!what.empty()) return refuse(tensor, what);
  }
  return absl::OkStatus();
}

// The donor's own tensors are what its config asks for; here, that it is what the model asks for.
absl::Status CheckDomainShapes(const Checkpoint& model, const Checkpoint& donor, int donor_domain) {
  const ModelSpec& spec = model.spec();
  const std::string& domain = donor.spec().domains[static_cast<size_t>(donor_domain)].name;
  const auto check = [&](const std::string& name, std::vector<int64_t> shape) -> absl::Status {
    const absl::StatusOr<const TensorInfo*> tensor = donor.Find(name);
    if (!tensor.ok()) {
      return Refuse(donor, absl::StrCat("tensor ", Quoted(name), " is missing, which the model's layers ask for"));
    }
    if ((*tensor)->shape == shape) return absl::OkStatus();
    return Refuse(donor, absl::StrCat("tensor ", Quoted(name), " has the shape ", ShapeText((*tensor)->shape),
                                      ", the model asks for ", ShapeText(shape)));
  };
  for (const int layer : spec.SparseLayers()) {
    const FfnSpec& ffn = spec.layers[static_cast<size_t>(layer)].ffn;
    SCION_RETURN_IF_ERROR(check(ExpertTensorName(layer, domain, 0, "gate"), {ffn.intermediate_size, spec.hidden_size}));
    SCION_RETURN_IF_ERROR(check(RouteTensorName(layer, domain), {ffn.num_experts_per_tok, spec.vocab_size}));
  }
  return absl::OkStatus();
}

// What is in no tensor's shape and changes what is computed.
absl::Status CheckSpec(const Checkpoint& model, const Checkpoint& donor) {
  const ModelSpec &a = model.spec(), &b = donor.spec();
  const auto refuse = [&](std::string_view key) {
    return Refuse(donor, absl::StrCat("config.json: ", Quoted(key), " is not the model's"));
  };
  if (a.layers.size() != b.layers.size()) return refuse("num_hidden_layers");
  if (a.SparseLayers() != b.SparseLayers()) return refuse("sparse_layers");
  if (a.rms_norm_eps != b.rms_norm_eps) return refuse("rms_norm_eps");
  if (a.tie_word_embeddings != b.tie_word_embeddings) return refuse("tie_word_embeddings");
  for (size_t l = 0; l < a.layers.size(); ++l) {
    const AttentionSpec &of_a = a.layers[l].attention, &of_b = b.layers[l].attention;
    if (of_a.num_heads != of_b.num_heads) return refuse("num_attention_heads");
    if (of_a.num_kv_heads != of_b.num_kv_heads) return refuse("num_key_value_heads");
    if (of_a.rope_theta != of_b.rope_theta) return refuse("rope_theta");
    if (of_a.qk_norm != of_b.qk_norm) return refuse("model_type");
  }
  return absl::OkStatus();
}

absl::Status CheckVocabulary(const Checkpoint& model, const Checkpoint& donor) {
  for (const std::string_view name : kVocabularyFiles) {
    std::error_code error;
    const bool in_model = std::filesystem::exists(model.directory() / name, error);
    const bool in_donor = std::filesystem::exists(donor.directory() / name, error);
    if (in_model != in_donor) {
      return Refuse(donor, absl::StrCat(ToAbsl(name), " is in the ", in_model ? "model" : "donor", " only"));
    }
    if (!in_model) continue;
    SCION_ASSIGN_OR_RETURN(const std::string a, ReadTextInside(model.directory(), name));
    SCION_ASSIGN_OR_RETURN(const std::string b, ReadTextInside(donor.directory(), name));
    if (a != b) return Refuse(donor, absl::StrCat(ToAbsl(name), " is not the model's: another vocabulary"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckDonor(const Checkpoint& model, const Checkpoint& donor, int donor_domain, Progress& progress) {
  SCION_RETURN_IF_ERROR(CheckDomainShapes(model, donor, donor_domain));
  SCION_RETURN_IF_ERROR(CheckSpec(model, donor));
  SCION_RETURN_IF_ERROR(CheckVocabulary(model, donor));
  return CheckTrunk(model, donor, progress);
}

uint64_t TrunkBytesToCompare(const Checkpoint& model, const Checkpoint& donor) {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : model.tensors()) {
    if (!IsTrunk(model, tensor)) continue;
    const absl::StatusOr<const TensorInfo*> other = donor.Find(tensor.name);
    if (!other.ok() || !IsSamePlace(model, tensor, donor, **other)) bytes += tensor.bytes;
  }
  return bytes;
}

}  // namespace scion
