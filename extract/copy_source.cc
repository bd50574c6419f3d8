#include "extract/copy_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "extract/new_file.h"

namespace scion {

CopySource::CopySource(const ReadOnlyFile& file)
    : file_(file),
      // By its descriptor: the path may have come to mean another file.
      direct_fd_(::open(("/proc/self/fd/" + std::to_string(file.fd())).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)),
      mapping_(file.size() == 0 ? MAP_FAILED : ::mmap(nullptr, file.size(), PROT_NONE, MAP_SHARED, file.fd(), 0)) {}

CopySource::~CopySource() {
  if (mapping_ != MAP_FAILED) ::munmap(mapping_, file_.size());
  if (direct_fd_ >= 0) ::close(direct_fd_);
}

bool CopySource::IsInPageCache(uint64_t offset, size_t bytes) const {
  if (mapping_ == MAP_FAILED) return false;
  const auto page_bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  // Of each page, in the lowest bit. A kernel that won't tell says that all are.
  std::vector<unsigned char> pages((bytes + page_bytes - 1) / page_bytes);
  return ::mincore(static_cast<std::byte*>(mapping_) + offset, bytes, pages.data()) == 0 &&
         std::ranges::all_of(pages, [](unsigned char page) { return (page & 1) != 0; });
}

size_t CopySource::ReadDirect(uint64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(direct_fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

absl::Status CopySource::Read(uint64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  if (direct_fd_ >= 0 && !IsInPageCache(offset, out.size())) {
    done = ReadDirect(offset, out.first(out.size() - out.size() % kDirectAlignment));
  }
  // The end of a file is of any length; and whatever a direct read could not, this one does, or says why not.
  return file_.Read(offset + done, out.subspan(done));
}

}  // namespace scion
