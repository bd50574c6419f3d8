#include "extract/digest_file.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <optional>
#include <thread>

#include "engine/base/sha256.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr uint64_t kChunkBytes = uint64_t{4} << 20;
constexpr off_t kAheadBytes = 16 << 20;

std::atomic<bool> cancel_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler sets it

// Hashes the data of each tensor as the chunks of the file come by.
class TensorHasher {
 public:
  explicit TensorHasher(std::span<const TensorInfo> tensors) : tensors_(tensors) {}

  // The file's bytes from `begin` on, where the chunk before ended.
  void Update(uint64_t begin, std::span<const std::byte> chunk) {
    const uint64_t end = begin + chunk.size();
    while (!tensors_.empty() && tensors_.front().offset < end) {
      const TensorInfo& tensor = tensors_.front();
      if (!hash_.has_value()) hash_.emplace();
      const uint64_t from = std::max(tensor.offset, begin);
      const uint64_t to = std::min(tensor.offset + tensor.bytes, end);
      hash_->Update(chunk.subspan(from - begin, to - from));
      if (tensor.offset + tensor.bytes > end) break;
      sha256_.emplace_back(tensor.name, hash_->FinishHex());
      hash_.reset();
      tensors_ = tensors_.subspan(1);
    }
  }

  std::vector<std::pair<std::string, std::string>> Finish() {
    // Tensors without data at the very end.
    for (const TensorInfo& tensor : tensors_) sha256_.emplace_back(tensor.name, Sha256Hex(""));
    return std::move(sha256_);
  }

 private:
  std::span<const TensorInfo> tensors_;  // not yet finished
  std::optional<Sha256> hash_;           // of tensors_.front(), once its first byte is there
  std::vector<std::pair<std::string, std::string>> sha256_;
};

// Two threads hash a chunk, the whole's and the tensors', while the caller writes it and reads the next.
class HashingThreads {
 public:
  HashingThreads(Sha256& whole, TensorHasher& tensors)
      : by_whole_([&](uint64_t, std::span<const std::byte> chunk) { whole.Update(chunk); }, *this),
        by_tensors_([&](uint64_t begin, std::span<const std::byte> chunk) { tensors.Update(begin, chunk); }, *this) {}
  ~HashingThreads() {
    if (running_) Wait();
    chunk_ = {};
    start_.arrive_and_wait();
  }

  // The chunk stays as it is until Wait returns. Not empty.
  void Start(uint64_t begin, std::span<const std::byte> chunk) {
    begin_ = begin;
    chunk_ = chunk;
    running_ = true;
    start_.arrive_and_wait();
  }
  void Wait() {
    done_.arrive_and_wait();
    running_ = false;
  }

 private:
  class Worker {
   public:
    template <typename Fn>
    Worker(Fn work, HashingThreads& shared)
        : thread_([work, &shared] {
            while (true) {
              shared.start_.arrive_and_wait();
              if (shared.chunk_.empty()) return;
              work(shared.begin_, shared.chunk_);
              shared.done_.arrive_and_wait();
            }
          }) {}

   private:
    std::jthread thread_;
  };

  std::barrier<> start_{3}, done_{3};
  uint64_t begin_ = 0;
  std::span<const std::byte> chunk_;
  bool running_ = false;
  Worker by_whole_, by_tensors_;
};

}  // namespace

void RequestCancel() { cancel_requested = true; }

bool CancelRequested() { return cancel_requested; }

absl::StatusOr<FileDigest> DigestFile(const ReadOnlyFile& file, std::span<const TensorInfo> tensors, NewFile* copy,
                                      Progress& progress) {
  ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 whole;
  TensorHasher tensor_hasher(tensors);
  std::array<std::vector<std::byte>, 2> buffers;
  const auto read = [&](uint64_t begin, std::vector<std::byte>& buffer) -> absl::Status {
    // The disk reads on while this chunk is written, in larger pieces than it would for reads as they come.
    ::posix_fadvise(file.fd(), static_cast<off_t>(begin), kAheadBytes, POSIX_FADV_WILLNEED);
    if (cancel_requested) return absl::CancelledError(absl::StrCat("interrupted while reading ", file.path().string()));
    buffer.resize(std::min(kChunkBytes, file.size() - begin));
    return file.Read(begin, buffer);
  };
  SCION_RETURN_IF_ERROR(read(0, buffers[0]));
  {
    std::optional<HashingThreads> threads;  // not for a small file
    if (file.size() > kChunkBytes) threads.emplace(whole, tensor_hasher);
    for (uint64_t begin = 0, turn = 0; begin < file.size(); begin += kChunkBytes, turn ^= 1) {
      const std::span<const std::byte> chunk = buffers[turn];
      if (threads.has_value()) {
        threads->Start(begin, chunk);
      } else {
        whole.Update(chunk);
        tensor_hasher.Update(begin, chunk);
      }
      if (copy != nullptr) SCION_RETURN_IF_ERROR(copy->Append(chunk));
      if (begin + chunk.size() < file.size()) SCION_RETURN_IF_ERROR(read(begin + chunk.size(), buffers[turn ^ 1]));
      if (threads.has_value()) threads->Wait();
      progress.Advance(chunk.size());
    }
  }
  return FileDigest{.bytes = file.size(), .sha256 = whole.FinishHex(), .tensor_sha256 = tensor_hasher.Finish()};
}

}  // namespace scion
