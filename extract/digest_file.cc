#include "extract/digest_file.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "engine/base/sha256.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr uint64_t kChunkBytes = uint64_t{4} << 20;

std::atomic<bool> cancel_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler sets it

}  // namespace

void RequestCancel() { cancel_requested = true; }

bool CancelRequested() { return cancel_requested; }

absl::StatusOr<FileDigest> DigestFile(const ReadOnlyFile& file, std::span<const TensorInfo> tensors, NewFile* copy,
                                      Progress& progress) {
  FileDigest digest{.bytes = file.size(), .sha256 = {}, .tensor_sha256 = {}};
  Sha256 whole;
  std::optional<Sha256> tensor_hash;  // of tensors.front(), once its first byte is there
  std::vector<std::byte> chunk(std::min(kChunkBytes, file.size()));
  for (uint64_t begin = 0; begin < file.size(); begin += chunk.size()) {
    if (cancel_requested) return absl::CancelledError(absl::StrCat("interrupted while reading ", file.path().string()));
    chunk.resize(std::min(kChunkBytes, file.size() - begin));
    SCION_RETURN_IF_ERROR(file.Read(begin, chunk));
    whole.Update(chunk);
    const uint64_t end = begin + chunk.size();
    while (!tensors.empty() && tensors.front().offset < end) {
      const TensorInfo& tensor = tensors.front();
      if (!tensor_hash.has_value()) tensor_hash.emplace();
      const uint64_t from = std::max(tensor.offset, begin);
      const uint64_t to = std::min(tensor.offset + tensor.bytes, end);
      tensor_hash->Update(std::span(chunk).subspan(from - begin, to - from));
      if (tensor.offset + tensor.bytes > end) break;
      digest.tensor_sha256.emplace_back(tensor.name, tensor_hash->FinishHex());
      tensor_hash.reset();
      tensors = tensors.subspan(1);
    }
    if (copy != nullptr) SCION_RETURN_IF_ERROR(copy->Append(chunk));
    progress.Advance(chunk.size());
  }
  // Tensors without data at the very end.
  for (const TensorInfo& tensor : tensors) digest.tensor_sha256.emplace_back(tensor.name, Sha256Hex(""));
  digest.sha256 = whole.FinishHex();
  return digest;
}

}  // namespace scion
