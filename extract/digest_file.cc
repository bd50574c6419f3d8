#include "extract/digest_file.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "engine/base/sha256.h"
#include "engine/base/status.h"

namespace scion {
namespace {

// What is read at once: small enough to stay in a core's cache until it has been written or hashed.
constexpr uint64_t kPieceBytes = uint64_t{128} << 10;
// The copy is at most this far ahead of the hashes: three threads on two cores then seldom wait for each other.
constexpr uint64_t kMaxLeadBytes = uint64_t{64} << 20;
constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

std::atomic<bool> cancel_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler sets it

using Reader = std::function<absl::Status(uint64_t offset, std::span<std::byte> out)>;

// Hashes the data of each tensor as the bytes of the file come by.
class TensorHasher {
 public:
  explicit TensorHasher(std::span<const TensorInfo> tensors) : tensors_(tensors) {}

  // The file's bytes from `begin` on, where those before ended.
  void Update(uint64_t begin, std::span<const std::byte> bytes) {
    const uint64_t end = begin + bytes.size();
    while (!tensors_.empty() && tensors_.front().offset < end) {
      const TensorInfo& tensor = tensors_.front();
      if (!hash_.has_value()) hash_.emplace();
      const uint64_t from = std::max(tensor.offset, begin);
      const uint64_t to = std::min(tensor.offset + tensor.bytes, end);
      hash_->Update(bytes.subspan(from - begin, to - from));
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

// A position in the file that one thread moves on and others wait for.
class Position {
 public:
  void Advance(uint64_t to) {
    value_.store(to, std::memory_order_release);
    value_.notify_all();
  }
  // One that has reached `position`, as soon as there is one.
  uint64_t WaitFor(uint64_t position) const {
    uint64_t value = value_.load(std::memory_order_acquire);
    for (; value < position; value = value_.load(std::memory_order_acquire)) {
      value_.wait(value, std::memory_order_acquire);
    }
    return value;
  }

 private:
  std::atomic<uint64_t> value_ = 0;
};

// Hashes the bytes of a file in a thread of its own, as far as another thread says that they are there.
class HashingThread {
 public:
  using Update = std::function<void(uint64_t begin, std::span<const std::byte>)>;

  HashingThread(Reader read, uint64_t size, Update update)
      : read_(std::move(read)), size_(size), update_(std::move(update)), thread_([this] { Run(); }) {}
  // Ends early unless all bytes were announced.
  ~HashingThread() {
    stop_ = true;
    there_.Advance(size_);
  }

  void Announce(uint64_t end) { there_.Advance(end); }
  void WaitFor(uint64_t end) const { done_.WaitFor(end); }
  // Once WaitFor(size) has returned.
  const absl::Status& status() const { return status_; }

 private:
  void Run() {
    std::vector<std::byte> buffer(kPieceBytes);
    for (uint64_t begin = 0; begin < size_;) {
      const uint64_t end = std::min(there_.WaitFor(begin + 1), size_);
      while (begin < end) {
        const std::span<std::byte> piece = std::span(buffer).first(std::min(kPieceBytes, end - begin));
        if (status_.ok() && !stop_) status_ = read_(begin, piece);
        if (status_.ok() && !stop_) update_(begin, piece);
        begin += piece.size();
      }
      done_.Advance(end);
    }
  }

  Reader read_;
  uint64_t size_;
  Update update_;
  std::atomic<bool> stop_ = false;
  Position there_, done_;
  absl::Status status_;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace

void RequestCancel() { cancel_requested = true; }

bool CancelRequested() { return cancel_requested; }

absl::StatusOr<FileDigest> DigestFile(const ReadOnlyFile& file, std::span<const TensorInfo> tensors, NewFile* copy,
                                      Progress& progress) {
  // More than that (POSIX_FADV_WILLNEED) costs half of the speed: pages leave the cache before they are copied.
  ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 whole;
  TensorHasher tensor_hasher(tensors);
  // What was written is what is hashed.
  const Reader read = [&](uint64_t offset, std::span<std::byte> out) {
    return copy == nullptr ? file.Read(offset, out) : copy->Read(offset, out);
  };
  HashingThread by_whole(read, file.size(), [&](uint64_t, std::span<const std::byte> bytes) { whole.Update(bytes); });
  std::optional<HashingThread> by_tensors;
  if (!tensors.empty()) {
    by_tensors.emplace(read, file.size(),
                       [&](uint64_t begin, std::span<const std::byte> bytes) { tensor_hasher.Update(begin, bytes); });
  }
  const auto hashed = [&](uint64_t end) {
    by_whole.WaitFor(end);
    if (by_tensors.has_value()) by_tensors->WaitFor(end);
  };

  std::vector<std::byte> buffer(kPieceBytes);
  for (uint64_t begin = 0; begin < file.size();) {
    if (cancel_requested) return absl::CancelledError(absl::StrCat("interrupted while reading ", file.path().string()));
    const uint64_t end = std::min(begin + kChunkBytes, file.size());
    for (uint64_t at = begin; copy != nullptr && at < end;) {
      const std::span<std::byte> piece = std::span(buffer).first(std::min(kPieceBytes, end - at));
      SCION_RETURN_IF_ERROR(file.Read(at, piece));
      SCION_RETURN_IF_ERROR(copy->Append(piece));
      at += piece.size();
    }
    by_whole.Announce(end);
    if (by_tensors.has_value()) by_tensors->Announce(end);
    hashed(end - std::min(end, kMaxLeadBytes));
    progress.Advance(end - begin);
    begin = end;
  }
  hashed(file.size());
  SCION_RETURN_IF_ERROR(by_whole.status());
  if (by_tensors.has_value()) SCION_RETURN_IF_ERROR(by_tensors->status());
  return FileDigest{.bytes = file.size(), .sha256 = whole.FinishHex(), .tensor_sha256 = tensor_hasher.Finish()};
}

}  // namespace scion
