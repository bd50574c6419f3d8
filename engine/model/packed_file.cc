#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/atomic_file.h"
#include "engine/base/file.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/pack_cache.h"

namespace scion {

namespace fs = std::filesystem;

namespace {

// To be raised when the panels of an item are put in another order; how a panel lies has a hash of its own.
constexpr int kVersion = 3;
constexpr size_t kPageBytes = 4096;
// The page cache keeps what is written in pieces of a huge page's size and place as huge pages, where the file system
// has them: mapped, they cost neither page faults nor entries of the TLB.
constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr size_t kWindowBytes = size_t{16} << 20;
// How much of a source file tells it from one of the same header, size and time.
constexpr int kSamples = 64;
constexpr size_t kSampleBytes = 4096;

size_t DataOffset(std::string_view header) { return AlignUp(header.size(), kPageBytes); }

struct FileState {
  uint64_t bytes = 0;
  int64_t seconds = 0;
  int64_t nanoseconds = 0;
  uint32_t owner = 0;
};

absl::StatusOr<FileState> StateOf(const ReadOnlyFile& file) {
  struct stat st;
  if (::fstat(file.fd(), &st) != 0) return ErrnoStatus(errno, "stat", file.path());
  return FileState{static_cast<uint64_t>(st.st_size), st.st_mtim.tv_sec, st.st_mtim.tv_nsec, st.st_uid};
}

absl::StatusOr<std::string> SampleHash(const ReadOnlyFile& file) {
  Sha256 hash;
  std::vector<std::byte> sample(std::min<uint64_t>(kSampleBytes, file.size()));
  for (uint64_t i = 0; i < kSamples; ++i) {
    SCION_RETURN_IF_ERROR(file.Read((file.size() - sample.size()) / (kSamples - 1) * i, sample));
    hash.Update(sample);
  }
  return hash.FinishHex();
}

std::string_view FirstLineThatDiffers(std::string_view text, std::string_view other) {
  const size_t at =
      static_cast<size_t>(std::mismatch(text.begin(), text.end(), other.begin(), other.end()).first - text.begin());
  const size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
  return text.substr(begin, text.find('\n', begin) - begin);
}

absl::Status CheckOwner(const ReadOnlyFile& file, const PackPlan& plan) {
  struct stat st;
  if (::fstat(file.fd(), &st) != 0) return ErrnoStatus(errno, "stat", file.path());
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0) return absl::DataLossError("others than its owner may write it");
  if (st.st_uid == ::geteuid() || st.st_uid == 0) return absl::OkStatus();
  for (int index : plan.Files()) {
    SCION_ASSIGN_OR_RETURN(const FileState source, StateOf(plan.checkpoint().files()[static_cast<size_t>(index)].file));
    if (source.owner == st.st_uid) return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("it belongs to another user, ", st.st_uid));
}

// Runs fn(begin, bytes) for all of [0, bytes) in huge pages, on all threads; the first error.
template <typename Fn>
absl::Status ForHugePages(size_t bytes, ThreadPool& pool, Fn&& fn) {
  std::mutex mutex;
  absl::Status first_error;
  const size_t count = (bytes + kHugePageBytes - 1) / kHugePageBytes;
  pool.ParallelFor(static_cast<int>(count), [&](int task, int) {
    const size_t begin = static_cast<size_t>(task) * kHugePageBytes;
    absl::Status status = fn(begin, std::min(kHugePageBytes, bytes - begin));
    if (status.ok()) return;
    std::lock_guard lock(mutex);
    if (first_error.ok()) first_error = std::move(status);
  });
  return first_error;
}

// Header and block in windows of bounded memory, each written in whole huge pages.
absl::Status WriteAll(AtomicFileWriter& writer, const PackPlan& plan, std::string_view header, ThreadPool& pool) {
  const std::vector<PackPlan::Piece> pieces = plan.Pieces();
  size_t largest = 0;
  for (const PackPlan::Piece& piece : pieces) largest = std::max(largest, piece.bytes);
  const size_t data_offset = DataOffset(header);
  SCION_ASSIGN_OR_RETURN(const AlignedBuffer window,
                         AlignedBuffer::Create(data_offset + kWindowBytes + largest, "packing"));
  std::memcpy(window.data(), header.data(), header.size());
  size_t filled = data_offset;
  uint64_t window_offset = 0;  // of the window, in the file
  int released = 0;
  for (size_t next = 0; next < pieces.size();) {
    size_t end = next;
    size_t bytes = 0;
    while (end < pieces.size() && filled + bytes < data_offset + kWindowBytes) bytes += pieces[end++].bytes;
    SCION_RETURN_IF_ERROR(plan.Make(std::span(pieces).subspan(next, end - next), window.data() + filled, pool));
    filled += bytes;
    next = end;
    const bool is_last = next == pieces.size();
    const size_t written = is_last ? filled : filled / kHugePageBytes * kHugePageBytes;
    SCION_RETURN_IF_ERROR(ForHugePages(written, pool, [&](size_t begin, size_t n) {
      return writer.WriteAt(window_offset + begin, {window.data() + begin, n});
    }));
    filled -= written;
    window_offset += written;
    std::memmove(window.data(), window.data() + written, filled);
    for (const int whole = is_last ? pieces.back().item + 1 : pieces[next].item; released < whole; ++released) {
      plan.ReleaseSource(released);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> PackedFileHeader(const PackPlan& plan) {
  std::string text = absl::StrCat("scion packed weights, version ", kVersion, "\nweights ",
                                  ToAbsl(WeightModeName(plan.mode())), ", ", plan.bytes(), " bytes\n");
  const Checkpoint& checkpoint = plan.checkpoint();
  for (const int index : plan.Files()) {
    const CheckpointFile& file = checkpoint.files()[static_cast<size_t>(index)];
    SCION_ASSIGN_OR_RETURN(const FileState state, StateOf(file.file));
    SCION_ASSIGN_OR_RETURN(const std::string samples, SampleHash(file.file));
    absl::StrAppend(&text, "file ", index, " is ", Quoted(file.path), ", ", state.bytes, " bytes of ", state.seconds,
                    ".", absl::Dec(state.nanoseconds, absl::kZeroPad9), ", samples ", samples);
    if (checkpoint.lock() != nullptr) {
      absl::StrAppend(&text, ", locked ", checkpoint.lock()->files.at(file.path).sha256);
    }
    text += "\n";
  }
  return text + plan.Description();
}

absl::StatusOr<WeightMemory> OpenPackedFile(const fs::path& path, const PackPlan& plan, std::string_view header,
                                            ThreadPool& pool) {
  SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(path));
  SCION_RETURN_IF_ERROR(CheckOwner(file, plan));
  const size_t data_offset = DataOffset(header);
  std::string expected(header);
  expected.resize(data_offset, '\0');
  std::string found(std::min<uint64_t>(data_offset, file.size()), '\0');
  SCION_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(found))));
  if (found != expected) {
    return absl::FailedPreconditionError(absl::StrCat("it says ", Quoted(FirstLineThatDiffers(found, expected)),
                                                      ", not ", Quoted(FirstLineThatDiffers(expected, found))));
  }
  if (file.size() != data_offset + plan.bytes()) {
    return absl::DataLossError(absl::StrCat("it has ", file.size(), " bytes, not ", data_offset + plan.bytes()));
  }
  SCION_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Map(file));
  SCION_RETURN_IF_ERROR(
      ForHugePages(mapped.bytes().size(), pool, [&](size_t begin, size_t n) { return mapped.Populate(begin, n); }));
  return WeightMemory(std::move(mapped), data_offset);
}

absl::Status WritePackedFile(const fs::path& path, const PackPlan& plan, std::string_view header, ThreadPool& pool) {
  SCION_ASSIGN_OR_RETURN(AtomicFileWriter writer, AtomicFileWriter::Create(path));
  SCION_RETURN_IF_ERROR(writer.Reserve(DataOffset(header) + plan.bytes()));
  SCION_RETURN_IF_ERROR(WriteAll(writer, plan, header, pool));
  // A source that is written to while it is read: what was packed may be of both states.
  SCION_ASSIGN_OR_RETURN(const std::string header_now, PackedFileHeader(plan));
  if (header_now != header) return absl::FailedPreconditionError("the model's files changed while they were packed");
  return writer.Commit();
}

}  // namespace scion
