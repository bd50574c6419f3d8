#include "engine/base/mapped_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "engine/base/status.h"

namespace scion {

absl::StatusOr<MappedFile> MappedFile::Map(const ReadOnlyFile& file) {
  MappedFile mapped;
  mapped.path_ = file.path().string();
  if (file.size() == 0) return mapped;
  void* p = ::mmap(nullptr, file.size(), PROT_READ, MAP_SHARED, file.fd(), 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("map: ", mapped.path_, ": ", file.size(), " bytes: ", std::generic_category().message(errno)));
  }
  // A hint: pages that have yet to be read from disk come as huge pages, where the file system has them.
  ::madvise(p, file.size(), MADV_HUGEPAGE);
  mapped.data_ = static_cast<const std::byte*>(p);
  mapped.size_ = file.size();
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

absl::Status MappedFile::Populate(size_t offset, size_t size) const {
  if (offset >= size_) return absl::OkStatus();
  const size_t length = std::min(size, size_ - offset);
  while (::madvise(const_cast<std::byte*>(data_) + offset, length, MADV_POPULATE_READ) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == EINVAL) break;
    return absl::DataLossError(absl::StrCat("read: ", path_, ": bytes [", offset, ", +", length,
                                            ") of the mapping: ", std::generic_category().message(errno)));
  }
  return absl::OkStatus();
}

}  // namespace scion
