#include "extract/generations.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "engine/base/status.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

std::string DomainPath(std::string_view domain, uint64_t generation) {
  const std::string suffix = generation == 1 ? "" : absl::StrCat(".g", generation);
  return absl::StrCat("domains/", ToAbsl(domain), suffix, ".safetensors");
}

// The block types of the domain's tensors, as config.json says them; nothing if none is of blocks.
std::optional<QuantizationSpec> QuantizationOf(const Checkpoint& model, int domain) {
  const std::optional<QuantizationSpec>& all = model.spec().quantization;
  std::optional<QuantizationSpec> result;
  if (!all.has_value()) return result;
  for (const TensorInfo& tensor : model.tensors()) {
    if (model.FileOf(tensor).domain != domain || !IsQuantized(tensor.dtype)) continue;
    if (!result.has_value()) result = QuantizationSpec{.type = all->type, .tensors = {}};
    if (tensor.dtype != all->type) result->tensors[tensor.name] = tensor.dtype;
  }
  return result;
}

}  // namespace

NewGeneration NextGeneration(const Checkpoint& model, std::string_view domain) {
  NewGeneration next;
  const auto after = [&](uint64_t generation) { next.generation = std::max(next.generation, generation + 1); };
  for (const CheckpointFile& file : model.files()) {
    if (file.domain.has_value() && PartName(model, file) == domain) after(file.generation);
  }
  if (const LockFile* lock = model.lock(); lock != nullptr) {
    const auto earlier = lock->earlier.find(std::string(domain));
    if (earlier != lock->earlier.end()) after(earlier->second.back().generation);
  }
  std::error_code error;
  while (fs::symlink_status(model.directory() / DomainPath(domain, next.generation), error).type() !=
         fs::file_type::not_found) {
    ++next.generation;
  }
  next.path = DomainPath(domain, next.generation);
  return next;
}

void RetireDomain(const Checkpoint& model, const std::string& domain, LockFile& lock) {
  const int index = *model.spec().FindDomain(domain);
  const LockFile::Domain current = lock.domains.at(domain);
  const LockFile::File& file = lock.files.at(current.file);
  std::vector<LockFile::Generation>& earlier = lock.earlier[domain];
  const auto place = std::ranges::upper_bound(earlier, current.generation, {}, &LockFile::Generation::generation);
  earlier.insert(place, {.file = current.file,
                         .generation = current.generation,
                         .num_experts = model.spec().domains[static_cast<size_t>(index)].num_experts,
                         .size = file.size,
                         .sha256 = file.sha256,
                         .quantization = QuantizationOf(model, index)});
  lock.files.erase(current.file);
  lock.domains.erase(domain);
}

absl::StatusOr<int> FindDomain(const Checkpoint& model, std::string_view domain) {
  if (const std::optional<int> index = model.spec().FindDomain(domain); index.has_value()) return *index;
  return absl::NotFoundError(absl::StrCat(model.directory().string(), ": no domain ", Quoted(domain),
                                          "; the model has: ", DomainNames(model)));
}

absl::Status NeedsDomainFiles(const Checkpoint& model) {
  if (!model.is_gguf() && model.spec().HasDomainFiles()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(model.directory().string(), ": not a model with domains in files of their own"));
}

std::string DomainNames(const Checkpoint& model) {
  std::string names;
  for (const DomainSpec& domain : model.spec().domains) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", domain.name);
  }
  return names;
}

}  // namespace scion
