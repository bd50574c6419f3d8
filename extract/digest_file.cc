#include "extract/digest_file.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <list>
#include <optional>
#include <ranges>
#include <thread>

#include "engine/base/aligned_buffer.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "extract/copy_source.h"

namespace scion {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{2} << 20;  // a huge page: one stretch of memory to the disk
constexpr uint64_t kSlots = 8;                       // pieces in memory at a time

std::atomic<bool> cancel_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler sets it

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

// A count that one thread moves on and others wait for.
class Count {
 public:
  void Advance(uint64_t to) {
    value_.store(to, std::memory_order_release);
    value_.notify_all();
  }
  void WaitFor(uint64_t count) const {
    for (uint64_t value = value_.load(std::memory_order_acquire); value < count;
         value = value_.load(std::memory_order_acquire)) {
      value_.wait(value, std::memory_order_acquire);
    }
  }

 private:
  std::atomic<uint64_t> value_ = 0;
};

// The pieces of a file, in memory one after the other.
class Pieces {
 public:
  static absl::StatusOr<Pieces> Create(uint64_t size) {
    const uint64_t pieces = std::clamp<uint64_t>(PiecesOf(size), 1, kSlots);
    SCION_ASSIGN_OR_RETURN(AlignedBuffer slots, AlignedBuffer::Create(pieces * kPieceBytes, "pieces of a file"));
    return Pieces(size, std::move(slots));
  }

  uint64_t count() const { return PiecesOf(size_); }
  // Of piece `i`; piece i + kSlots has the same place.
  std::span<std::byte> Place(uint64_t i) {
    return {slots_.data() + i % kSlots * kPieceBytes, std::min(kPieceBytes, size_ - i * kPieceBytes)};
  }

 private:
  Pieces(uint64_t size, AlignedBuffer slots) : size_(size), slots_(std::move(slots)) {}
  static uint64_t PiecesOf(uint64_t size) { return (size + kPieceBytes - 1) / kPieceBytes; }

  uint64_t size_;
  AlignedBuffer slots_;
};

// What is done with every piece, in order, once it has been read.
struct Consumer {
  std::function<absl::Status(uint64_t begin, std::span<const std::byte> piece)> use;
  Count done = {};
  absl::Status status = {};
};

// Fills `out` with the file's bytes from `begin` on.
using ReadFunction = std::function<absl::Status(uint64_t begin, std::span<std::byte> out)>;

// Reads the file while each consumer works in a thread of its own, the first in the caller's. After an error, of the
// reading or a consumer, which is returned, nothing more is done.
absl::Status ReadPieces(const ReadOnlyFile& file, const ReadFunction& read_piece, std::list<Consumer>& consumers) {
  SCION_ASSIGN_OR_RETURN(Pieces pieces, Pieces::Create(file.size()));
  Count read;
  std::atomic<bool> stop = false;
  // All stages count through to the end, so that none waits for one that has stopped.
  const auto run = [&](Count& done, absl::Status& status, const auto& wait, const auto& work) {
    for (uint64_t i = 0; i < pieces.count(); ++i) {
      wait(i);
      if (!stop) status = work(i);
      if (!status.ok()) stop = true;
      done.Advance(i + 1);
    }
  };
  const auto consume = [&](Consumer& consumer) {
    run(
        consumer.done, consumer.status, [&](uint64_t i) { read.WaitFor(i + 1); },
        [&](uint64_t i) { return consumer.use(i * kPieceBytes, pieces.Place(i)); });
  };
  absl::Status status;
  {
    const std::jthread reader([&] {
      run(
          read, status,
          [&](uint64_t i) {
            for (const Consumer& consumer : consumers) consumer.done.WaitFor(i + 1 - std::min(i + 1, kSlots));
          },
          [&](uint64_t i) {
            if (!cancel_requested) return read_piece(i * kPieceBytes, pieces.Place(i));
            return absl::CancelledError(absl::StrCat("interrupted while reading ", file.path().string()));
          });
    });
    std::vector<std::jthread> others;
    for (Consumer& consumer : consumers | std::views::drop(1)) others.emplace_back([&] { consume(consumer); });
    consume(consumers.front());
  }
  for (const Consumer& consumer : consumers) status.Update(consumer.status);
  return status;
}

}  // namespace

void RequestCancel() { cancel_requested = true; }

bool CancelRequested() { return cancel_requested; }

absl::StatusOr<FileDigest> DigestFile(const ReadOnlyFile& file, std::span<const TensorInfo> tensors, NewFile* copy,
                                      Progress& progress) {
  // For what comes through the page cache. More than that (POSIX_FADV_WILLNEED) costs half of the speed: pages leave
  // the cache before they are copied.
  ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 whole;
  TensorHasher tensor_hasher(tensors);
  // What is written is what is hashed: the same memory.
  std::list<Consumer> consumers;
  consumers.emplace_back([&](uint64_t, std::span<const std::byte> piece) {
    progress.Advance(piece.size());
    return copy == nullptr ? absl::OkStatus() : copy->Append(piece);
  });
  consumers.emplace_back([&](uint64_t, std::span<const std::byte> piece) {
    whole.Update(piece);
    return absl::OkStatus();
  });
  if (!tensors.empty()) {
    consumers.emplace_back([&](uint64_t begin, std::span<const std::byte> piece) {
      tensor_hasher.Update(begin, piece);
      return absl::OkStatus();
    });
  }
  // What is only hashed is likely to be read again, and may stay in the page cache.
  std::optional<CopySource> source;
  if (copy != nullptr) source.emplace(file);
  const auto read_piece = [&](uint64_t begin, std::span<std::byte> out) {
    return source.has_value() ? source->Read(begin, out) : file.Read(begin, out);
  };
  SCION_RETURN_IF_ERROR(ReadPieces(file, read_piece, consumers));
  return FileDigest{.bytes = file.size(), .sha256 = whole.FinishHex(), .tensor_sha256 = tensor_hasher.Finish()};
}

}  // namespace scion
