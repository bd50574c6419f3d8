// A large block of zeroed memory aligned to a page, with huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"

namespace scion {

class AlignedBuffer {
 public:
  // ResourceExhausted, naming `purpose` and the size, if the memory can't be had.
  static absl::StatusOr<AlignedBuffer> Create(size_t bytes, std::string_view purpose);

  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

constexpr size_t AlignUp(size_t n, size_t alignment) { return (n + alignment - 1) / alignment * alignment; }

}  // namespace scion
