// A GGUF file, on any bytes. The header that is accepted has tensors that lie inside the file, side by side; the
// checkpoint that is accepted is within the limits of the engine. The file is in memory, opened by its descriptor.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

void CheckHeader(const scion::ReadOnlyFile& file) {
  const auto header = scion::ReadGgufHeader(file, "fuzz.gguf");
  if (!header.ok()) return;
  uint64_t end = 0;
  for (const scion::TensorInfo& tensor : header->tensors) {
    Check(tensor.offset >= end && tensor.offset <= file.size() && tensor.bytes <= file.size() - tensor.offset);
    Check(!tensor.name.empty() && !tensor.shape.empty() && tensor.shape.size() <= scion::kMaxGgufTensorDims);
    uint64_t bytes = scion::DTypeRowBytes(tensor.dtype, static_cast<uint64_t>(tensor.shape.back()));
    for (size_t d = 0; d + 1 < tensor.shape.size(); ++d) bytes *= static_cast<uint64_t>(tensor.shape[d]);
    Check(bytes == tensor.bytes && bytes > 0);
    end = tensor.offset + tensor.bytes;
  }
}

void CheckCheckpoint(const std::filesystem::path& path, uint64_t file_bytes) {
  const auto checkpoint = scion::Checkpoint::Open(path);
  if (!checkpoint.ok()) return;
  const scion::ModelSpec& spec = (*checkpoint)->spec();
  Check((*checkpoint)->is_gguf() && spec.domains.size() == 1 && !spec.layers.empty());
  for (const scion::LayerSpec& layer : spec.layers) {
    Check(layer.attention.num_heads % layer.attention.num_kv_heads == 0 && layer.attention.head_dim % 16 == 0);
    Check(layer.ffn.num_experts_per_tok >= 1);
    if (layer.ffn.router == scion::RouterKind::kGate) {
      Check(layer.ffn.num_experts_per_tok <= spec.domains[0].num_experts);
    }
  }
  for (const scion::TensorInfo& tensor : (*checkpoint)->tensors()) {
    Check(tensor.offset <= file_bytes && tensor.bytes <= file_bytes - tensor.offset);
  }
  if (spec.bos_token_id.has_value()) Check(*spec.bos_token_id >= 0 && *spec.bos_token_id < spec.vocab_size);
  for (int id : spec.eos_token_ids) Check(id >= 0 && id < spec.vocab_size);
  if (const scion::GgufVocabulary* vocabulary = (*checkpoint)->vocabulary()) {
    const size_t size = vocabulary->tokens.size();
    Check(size == static_cast<size_t>(spec.vocab_size));
    Check(vocabulary->scores.empty() || vocabulary->scores.size() == size);
    Check(vocabulary->types.empty() || vocabulary->types.size() == size);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = ::memfd_create("fuzz.gguf", MFD_CLOEXEC);
  Check(::ftruncate(fd, static_cast<off_t>(size)) == 0);
  Check(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const std::filesystem::path path = "/proc/self/fd/" + std::to_string(fd);
  {
    const auto file = scion::ReadOnlyFile::Open(path);
    Check(file.ok() && file->size() == size);
    CheckHeader(*file);
  }
  CheckCheckpoint(path, size);
  return 0;
}
