#include "extract/copy_domain.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/safetensors.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr uint64_t kChunkBytes = uint64_t{4} << 20;
constexpr uint64_t kLengthBytes = 8;

int FileOfDomain(const Checkpoint& source, int domain) {
  const auto place = std::ranges::find(source.files(), std::optional<int>(domain), &CheckpointFile::domain);
  return static_cast<int>(place - source.files().begin());
}

// Length and text of the header, as they are.
absl::StatusOr<std::string> ReadHeader(const CheckpointFile& file) {
  std::string prefix(kLengthBytes, '\0');
  SCION_RETURN_IF_ERROR(file.file.Read(0, std::as_writable_bytes(std::span(prefix))));
  SCION_ASSIGN_OR_RETURN(const uint64_t length, ParseSafetensorsHeaderLength(prefix, file.file.size(), file.path));
  std::string header(kLengthBytes + length, '\0');
  SCION_RETURN_IF_ERROR(file.file.Read(0, std::as_writable_bytes(std::span(header))));
  return header;
}

absl::StatusOr<std::string> RenamedHeader(const CheckpointFile& file, std::string_view header, std::string_view domain,
                                          std::string_view as) {
  OrderedJson json = OrderedJson::parse(header.substr(kLengthBytes), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::DataLossError(absl::StrCat(file.path, ": its header has changed"));
  OrderedJson renamed = OrderedJson::object();
  for (auto& [name, tensor] : json.items()) {
    renamed[name == "__metadata__" ? name : RenameDomainOfTensor(name, domain, as)] = std::move(tensor);
  }
  std::string text = renamed.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) bytes[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i));
  return bytes + text;
}

}  // namespace

std::string RenameDomainOfTensor(std::string_view tensor, std::string_view domain, std::string_view as) {
  const std::string marker = absl::StrCat(".mlp.domains.", ToAbsl(domain), ".");
  const size_t at = tensor.find(marker);
  if (at == tensor.npos) return std::string(tensor);
  return absl::StrCat(ToAbsl(tensor.substr(0, at)), ".mlp.domains.", ToAbsl(as), ".",
                      ToAbsl(tensor.substr(at + marker.size())));
}

uint64_t DomainFileBytes(const Checkpoint& source, int domain) {
  return source.files()[static_cast<size_t>(FileOfDomain(source, domain))].file.size();
}

absl::StatusOr<CopiedDomain> CopyDomain(const Checkpoint& source, int domain, std::string_view as, NewFile& copy,
                                        Progress& progress) {
  const int index = FileOfDomain(source, domain);
  const CheckpointFile& file = source.files()[static_cast<size_t>(index)];
  const std::string& name = source.spec().domains[static_cast<size_t>(domain)].name;
  const auto annotate = [&](const absl::Status& status) { return Annotate(status, source.directory().string()); };

  absl::StatusOr<std::string> header = ReadHeader(file);
  if (!header.ok()) return annotate(header.status());
  std::string new_header = *header;
  if (name != as) {
    absl::StatusOr<std::string> renamed = RenamedHeader(file, *header, name, as);
    if (!renamed.ok()) return annotate(renamed.status());
    new_header = *std::move(renamed);
  }
  CopiedDomain result;
  Sha256 old_hash, new_hash;
  old_hash.Update(std::as_bytes(std::span(*header)));
  new_hash.Update(std::as_bytes(std::span(new_header)));
  SCION_RETURN_IF_ERROR(copy.Append(std::as_bytes(std::span(new_header))));
  std::vector<std::byte> chunk;
  // The tensors lie side by side, from the end of the header to the end of the file.
  for (const TensorInfo& tensor : TensorsOf(source, index)) {
    const std::string new_name = RenameDomainOfTensor(tensor.name, name, as);
    Sha256 tensor_hash;
    for (uint64_t at = 0; at < tensor.bytes; at += chunk.size()) {
      if (CancelRequested()) {
        return absl::CancelledError(absl::StrCat("interrupted while reading ", file.file.path().string()));
      }
      chunk.resize(std::min(kChunkBytes, tensor.bytes - at));
      if (absl::Status status = source.Read(tensor, at, chunk); !status.ok()) return annotate(status);
      old_hash.Update(chunk);
      new_hash.Update(chunk);
      tensor_hash.Update(chunk);
      SCION_RETURN_IF_ERROR(copy.Append(chunk));
      progress.Advance(chunk.size());
    }
    result.digest.tensor_sha256.emplace_back(new_name, tensor_hash.FinishHex());
    result.tensor_bytes += tensor.bytes;
    if (IsQuantized(tensor.dtype)) result.block_types[new_name] = tensor.dtype;
  }
  const FileDigest read{.bytes = file.file.size(), .sha256 = old_hash.FinishHex(), .tensor_sha256 = {}};
  SCION_RETURN_IF_ERROR(CheckDigest(source, file.path, read));
  result.digest.bytes = new_header.size() + result.tensor_bytes;
  result.digest.sha256 = new_hash.FinishHex();
  SCION_RETURN_IF_ERROR(copy.Finish());
  return result;
}

}  // namespace scion
