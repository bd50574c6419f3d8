// A model directory or GGUF file, opened and checked, not yet loaded: names, shapes and places of all tensors, read
// through ReadOnlyFile. Both are hostile until proven otherwise: every extent is checked against the file's size before
// anything is allocated, links that lead out of the directory are refused, and each error names file and tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/base/file.h"
#include "engine/model/lock_file.h"
#include "engine/model/model_spec.h"
#include "engine/model/safetensors.h"
#include "engine/text/gguf_vocabulary.h"

namespace scion {

struct CheckpointFile {
  std::string path;           // relative to the directory, as in the index and the lock: "domains/code.safetensors";
                              // a GGUF file's own name
  std::optional<int> domain;  // index into spec().domains; nothing for the trunk
  uint64_t generation = 1;    // from the lock, else from the name: "code.g2.safetensors"
  ReadOnlyFile file;
};

class Checkpoint {
 public:
  // Opens and checks a Scion or ordinary Hugging Face directory (Llama, Qwen3-MoE, Mixtral): config.json, the lock if
  // there is one (it decides which files are meant), else the index, else trunk.safetensors (or model.safetensors) and
  // one domains/{name}.safetensors for each domain; then every tensor that the spec asks for: present, in the right
  // file, of the right shape and dtype, blocks of quantised weights having the shape of what they stand for. Every
  // entry of the route tables is read and checked against the group's number of experts. Tensors that the spec does not
  // ask for are ignored in the trunk and refused in a domain, and in a Qwen3-MoE or Mixtral directory. A GGUF file, or
  // a link to one: one file that belongs to the trunk, whose metadata are spec and vocabulary; tensors have the names
  // of a directory's, a gate-routed expert is one by itself; one that the spec does not ask for is refused. A
  // directory that a writer changes meanwhile, or was killed at changing, opens as it was before or as it is
  // afterwards. Needs no more memory than the files' size plus 128 MiB, whatever they claim. NotFound: no such
  // directory or file. PermissionDenied: a file that may not be read. InvalidArgument: a config that makes no sense, a
  // path that leads outside, something that is neither a directory nor, in its place, a regular file. DataLoss: a
  // damaged file. Unimplemented: a model that this build can't run. ResourceExhausted: more text or tensors than the
  // limits allow.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::filesystem::path& path);

  // What was opened: a directory, or a GGUF file.
  const std::filesystem::path& directory() const { return directory_; }
  bool is_gguf() const { return is_gguf_; }
  // The tokenizer of a GGUF file; null for a directory, and for a file without one.
  const GgufVocabulary* vocabulary() const { return vocabulary_.has_value() ? &*vocabulary_ : nullptr; }
  const ModelSpec& spec() const { return spec_; }
  // The text of config.json that the lock means; empty for a GGUF file.
  const std::string& config() const { return config_; }
  // The lock, if the directory has one.
  const LockFile* lock() const { return lock_.has_value() ? &*lock_ : nullptr; }
  std::span<const CheckpointFile> files() const { return files_; }
  const CheckpointFile& FileOf(const TensorInfo& tensor) const { return files_[static_cast<size_t>(tensor.file)]; }
  // In file order, by offset within a file.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  // NotFound names the tensor.
  absl::StatusOr<const TensorInfo*> Find(std::string_view name) const;

  // Copies bytes [offset, offset + out.size()) of a tensor's data. DataLoss, naming file and tensor, if the file has
  // shrunk since it was opened or cannot be read. Thread-safe.
  absl::Status Read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const;

  // Likewise, but rows that are interleaved in the file come in the engine's order; of such a tensor, offset and size
  // are whole rows.
  absl::Status ReadInOrder(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const;

  // Tells the system that a tensor's data are not needed again soon: their pages in its cache may go.
  void Release(const TensorInfo& tensor) const;

  // Whole small tensors. A float tensor of any float type is widened to fp32; an I32 tensor is copied.
  absl::StatusOr<std::vector<float>> ReadFloats(const TensorInfo& tensor) const;
  absl::StatusOr<std::vector<int32_t>> ReadInt32(const TensorInfo& tensor) const;

 private:
  absl::Status OpenDirectory(const std::filesystem::path& root);
  absl::Status OpenGguf(ReadOnlyFile file);
  // Of the last file; `file` is not yet set.
  absl::Status AddTensors(std::vector<TensorInfo> tensors);

  std::filesystem::path directory_;
  bool is_gguf_ = false;
  std::optional<GgufVocabulary> vocabulary_;
  ModelSpec spec_;
  std::string config_;
  std::optional<LockFile> lock_;
  std::vector<CheckpointFile> files_;
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_map<std::string, int> by_name_;
};

// Names of tensors in the design's format.
std::string TrunkTensorName(int layer, std::string_view rest);  // "model.layers.{l}.{rest}"
// projection: "gate", "up" or "down"
std::string ExpertTensorName(int layer, std::string_view domain, int expert, std::string_view projection);
// Of gate-routed layers, as the spec's expert_names have them. The gate is [experts, hidden_size].
std::string GateTensorName(const ModelSpec& spec, int layer);
std::string GateRoutedExpertTensorName(const ModelSpec& spec, int layer, int expert, std::string_view projection);
std::string RouteTensorName(int layer, std::string_view domain);
// The domain that a name claims: "model.layers.3.mlp.domains.code.route" -> "code"; nothing for the trunk's.
std::optional<std::string_view> DomainOfTensor(std::string_view name);
std::string RouteWeightTensorName(int layer, std::string_view domain);

}  // namespace scion
