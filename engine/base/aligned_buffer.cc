#include "engine/base/aligned_buffer.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace scion {

absl::StatusOr<AlignedBuffer> AlignedBuffer::Create(size_t bytes, std::string_view purpose) {
  AlignedBuffer buffer;
  if (bytes == 0) return buffer;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", std::string(purpose), ": ", bytes, " bytes"));
  }
  // A hint: a kernel without huge pages refuses it, and the memory is as good.
  madvise(p, bytes, MADV_HUGEPAGE);
  buffer.data_ = static_cast<std::byte*>(p);
  buffer.size_ = bytes;
  return buffer;
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace scion
