// Packed weights in files, so that a model that was packed before is ready at once, and all processes that serve it
// share one copy of it in memory.
//
// A cache, never a format: one file each for the trunk and every domain, "trunk.as-is.pack", "domain-code.q8.pack".
//
//   header   text, padded with zeros to a multiple of 4096 bytes: version, hash of the layout, mode, size, the source's
//            files (size, time, hash of samples, SHA-256 of the lock), and PackPlan::Description
//   data     the plan's block
//
// The header says all that decides what the data are. It is never parsed: the one that the file must have is made from
// the source, and a file whose header differs by a byte, or whose size does, is made anew. The instruction tier is not
// in it: the layout is the same for all, and where a tier chooses other packed types, the items' lines differ.
//
// A file is written under a temporary name, synced, renamed, and never changed afterwards, so that it may be mapped.
// Only files of this user, root or the source's owner are believed, and only if nobody else may write them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/aligned_buffer.h"
#include "engine/base/mapped_file.h"
#include "engine/base/thread_pool.h"
#include "engine/model/pack_cache_options.h"
#include "engine/model/pack_plan.h"

namespace scion {

// A block of packed weights: memory of this process, or a mapping shared with others.
class WeightMemory {
 public:
  WeightMemory() = default;
  explicit WeightMemory(AlignedBuffer own) : own_(std::move(own)), bytes_(own_.data(), own_.size()) {}
  WeightMemory(MappedFile file, size_t offset) : file_(std::move(file)), bytes_(file_.bytes().subspan(offset)) {}

  const std::byte* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  bool is_shared() const { return !file_.bytes().empty(); }

 private:
  AlignedBuffer own_;
  MappedFile file_;
  std::span<const std::byte> bytes_;
};

class PackCache {
 public:
  // The options must outlive the cache. total_bytes: of all blocks of the model.
  PackCache(const PackCacheOptions& options, size_t total_bytes, ThreadPool& pool);

  // The plan's block: mapped from its file if there is one and it is right; else made, written and then mapped; else,
  // if it can't be kept, made in memory, and nothing more is written. part: "trunk", "domain-code".
  // Errors are those of the source: DataLoss as Checkpoint::Read; ResourceExhausted when memory can't be had.
  absl::StatusOr<WeightMemory> Load(const PackPlan& plan, const std::string& part);

 private:
  void Note(bool is_problem, std::string text) const;

  const PackCacheOptions& options_;
  ThreadPool& pool_;
  bool enabled_;
};

// The two halves of Load, on one file.

// FailedPrecondition if the file was made from something else, DataLoss if it is damaged or its owner may not be
// believed; both say why. NotFound if there is none.
absl::StatusOr<WeightMemory> OpenPackedFile(const std::filesystem::path& path, const PackPlan& plan,
                                            std::string_view header, ThreadPool& pool);
// Errors as AtomicFileWriter's and PackPlan::Make's; FailedPrecondition if the source changed meanwhile. Needs some 32
// MiB of memory.
absl::Status WritePackedFile(const std::filesystem::path& path, const PackPlan& plan, std::string_view header,
                             ThreadPool& pool);
// The header that the file of a plan must have. Errors as ReadOnlyFile::Read.
absl::StatusOr<std::string> PackedFileHeader(const PackPlan& plan);

}  // namespace scion
