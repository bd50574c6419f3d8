// Files written piece by piece, past the page cache or not; and what is hashed and copied in one reading, which leaves
// the page cache as it was.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>

#include "engine/base/sha256.h"
#include "extract/copy_source.h"
#include "extract/digest_file.h"
#include "extract/new_file.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Bytes of which no two pages are alike.
std::string SomeBytes(size_t size) {
  std::string bytes(size, '\0');
  uint64_t state = 1;
  for (size_t i = 0; i < size; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    bytes[i] = static_cast<char>(state >> 56);
  }
  return bytes;
}

// `text` at an address that is, or is not, a multiple of kDirectAlignment.
class Placed {
 public:
  Placed(std::string_view text, size_t misalignment)
      : memory_(text.size() + 2 * kDirectAlignment), bytes_(memory_.data(), 0) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    const size_t skip = kDirectAlignment - address % kDirectAlignment + misalignment;
    bytes_ = {memory_.data() + skip, text.size()};
    std::ranges::copy(std::as_bytes(std::span(text)), bytes_.begin());
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> memory_;
  std::span<std::byte> bytes_;
};

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Nothing of the file stays in the page cache, if it is a file of a disk.
void DropPages(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  ASSERT_EQ(::fsync(file.fd()), 0);
  ASSERT_EQ(::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
}

// Which pages of the file are in the page cache.
std::vector<bool> PagesInMemory(const fs::path& path) {
  const auto size = static_cast<size_t>(fs::file_size(path));
  const auto page_bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const Descriptor file(path, O_RDONLY);
  void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd(), 0);
  EXPECT_NE(mapping, MAP_FAILED);
  std::vector<unsigned char> pages((size + page_bytes - 1) / page_bytes);
  EXPECT_EQ(::mincore(mapping, size, pages.data()), 0);
  ::munmap(mapping, size);
  std::vector<bool> in_memory;
  for (const unsigned char page : pages) in_memory.push_back((page & 1) != 0);
  return in_memory;
}

// By this process, ever.
uint64_t BytesReadFromDisk() {
  std::ifstream io("/proc/self/io");
  std::string name;
  uint64_t value = 0;
  while (io >> name >> value) {
    if (name == "read_bytes:") return value;
  }
  ADD_FAILURE() << "/proc/self/io does not say";
  return 0;
}

TEST(NewFile, HasTheBytesThatWereAppendedWhateverThePieces) {
  const TempDir temp;
  int n = 0;
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{4095}, 2 * kMiB - 1, 2 * kMiB, 2 * kMiB + 1, 5 * kMiB + 4096, 9 * kMiB + 777}) {
    const std::string text = SomeBytes(size);
    for (const size_t misalignment : {0, 8}) {
      const Placed placed(text, misalignment);
      for (const size_t piece : {size + 1, size_t{777'777}, 2 * kMiB, 2 * kMiB + 4096, size_t{10'000}}) {
        const fs::path path = temp.path() / std::to_string(n++);
        absl::StatusOr<NewFile> file = NewFile::Create(path);
        ASSERT_TRUE(file.ok()) << file.status();
        for (size_t at = 0; at < size; at += piece) {
          ASSERT_TRUE(file->Append(placed.bytes().subspan(at, std::min(piece, size - at))).ok());
        }
        ASSERT_TRUE(file->Finish().ok());
        ASSERT_TRUE(ReadBytes(path) == text) << size << " bytes in pieces of " << piece << ", " << misalignment;
      }
    }
  }
}

TEST(NewFile, IsNeverMadeWhereThereIsOne) {
  const TempDir temp;
  const fs::path path = temp.path() / "file";
  WriteBytes(path, "old");
  EXPECT_EQ(NewFile::Create(path).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadBytes(path), "old");
}

class DigestFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<FileDigest> Digest(const std::string& text, std::span<const TensorInfo> tensors, NewFile* copy) {
    WriteBytes(source(), text);
    return DigestSource(tensors, copy);
  }
  absl::StatusOr<FileDigest> DigestSource(std::span<const TensorInfo> tensors, NewFile* copy) {
    absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(source());
    if (!file.ok()) return file.status();
    Progress silent(nullptr, "", file->size(), Progress::Unit::kBytes);
    return DigestFile(*file, tensors, copy, silent);
  }
  // A copy of source() as it is now has `text`, and so has the hash.
  void ExpectCopied(const std::string& text) {
    absl::StatusOr<NewFile> new_file = NewFile::Create(copy());
    ASSERT_TRUE(new_file.ok()) << new_file.status();
    const absl::StatusOr<FileDigest> digest = DigestSource({}, &*new_file);
    ASSERT_TRUE(digest.ok()) << digest.status();
    ASSERT_TRUE(new_file->Finish().ok());
    EXPECT_TRUE(ReadBytes(copy()) == text);
    EXPECT_EQ(digest->sha256, Sha256Hex(text));
  }
  static TensorInfo Tensor(const std::string& name, uint64_t offset, uint64_t bytes) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.offset = offset;
    tensor.bytes = bytes;
    return tensor;
  }

  fs::path source() const { return temp_.path() / "source"; }
  fs::path copy() const { return temp_.path() / "copy"; }

 private:
  TempDir temp_;
};

TEST_F(DigestFileTest, HashesFileAndTensorsAndCopiesInOneReading) {
  // Longer than all that is in memory at once; tensors that begin and end inside, at, and far beyond pieces' ends.
  for (const size_t size : {size_t{100}, 2 * kMiB, 16 * kMiB, 37 * kMiB + 5}) {
    const std::string text = SomeBytes(size);
    const std::vector<TensorInfo> tensors = {Tensor("first", 10, size / 3), Tensor("empty", 10 + size / 3, 0),
                                             Tensor("second", size / 2, 7), Tensor("last", size / 2 + 7, size / 2 - 7),
                                             Tensor("nothing", size, 0)};
    absl::StatusOr<NewFile> file = NewFile::Create(copy());
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::StatusOr<FileDigest> digest = Digest(text, tensors, &*file);
    ASSERT_TRUE(digest.ok()) << digest.status();
    ASSERT_TRUE(file->Finish().ok());
    EXPECT_TRUE(ReadBytes(copy()) == text) << size;
    EXPECT_EQ(digest->bytes, size);
    EXPECT_EQ(digest->sha256, Sha256Hex(text));
    ASSERT_EQ(digest->tensor_sha256.size(), tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      EXPECT_EQ(digest->tensor_sha256[i].first, tensors[i].name);
      EXPECT_EQ(digest->tensor_sha256[i].second, Sha256Hex(text.substr(tensors[i].offset, tensors[i].bytes)))
          << tensors[i].name << " of " << size;
    }
    fs::remove(copy());
  }
}

TEST_F(DigestFileTest, AnEmptyFile) {
  absl::StatusOr<NewFile> file = NewFile::Create(copy());
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::StatusOr<FileDigest> digest = Digest("", {}, &*file);
  ASSERT_TRUE(digest.ok()) << digest.status();
  ASSERT_TRUE(file->Finish().ok());
  EXPECT_EQ(ReadBytes(copy()), "");
  EXPECT_EQ(digest->sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_F(DigestFileTest, AFileThatShrinksIsAnErrorAndNoThreadIsLeftWaiting) {
  for (const bool copied : {false, true}) {
    WriteBytes(source(), SomeBytes(40 * kMiB));
    const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(source());
    ASSERT_TRUE(file.ok()) << file.status();
    fs::resize_file(source(), 21 * kMiB + 1);
    DropPages(source());
    absl::StatusOr<NewFile> new_file = NewFile::Create(copy());
    ASSERT_TRUE(new_file.ok()) << new_file.status();
    Progress silent(nullptr, "", 1, Progress::Unit::kBytes);
    const std::vector<TensorInfo> tensors = {Tensor("all", 0, 40 * kMiB)};
    EXPECT_EQ(DigestFile(*file, tensors, copied ? &*new_file : nullptr, silent).status().code(),
              absl::StatusCode::kDataLoss);
    fs::remove(copy());
  }
}

TEST_F(DigestFileTest, ACopyLeavesThePageCacheAsItWas) {
  const std::string text = SomeBytes(9 * kMiB + 777);
  WriteBytes(source(), text);
  DropPages(source());
  // Some pages are there: the first piece whole, and of the second and fourth one each.
  const Descriptor in(source(), O_RDONLY);
  ASSERT_EQ(::posix_fadvise(in.fd(), 0, 0, POSIX_FADV_RANDOM), 0);  // no others read ahead
  std::string read(2 * kMiB, '\0');
  ASSERT_EQ(::pread(in.fd(), read.data(), read.size(), 0), static_cast<ssize_t>(read.size()));
  for (const size_t at : {3 * kMiB, 7 * kMiB}) ASSERT_EQ(::pread(in.fd(), read.data(), 1, static_cast<off_t>(at)), 1);
  const std::vector<bool> before = PagesInMemory(source());

  ASSERT_NO_FATAL_FAILURE(ExpectCopied(text));
  const std::vector<bool> after = PagesInMemory(source());
  const bool can_direct = Descriptor(source(), O_RDONLY | O_DIRECT).fd() >= 0;
  for (size_t i = 0; i + 1 < before.size(); ++i) {  // the last page is not whole, and read as any other
    if (before[i] || can_direct) {
      EXPECT_EQ(after[i], before[i]) << "page " << i;
    }
  }
}

TEST_F(DigestFileTest, ACopyReadsWhatIsInThePageCacheFromThere) {
  const size_t size = 8 * kMiB;
  WriteBytes(source(), SomeBytes(size));
  const auto read_from_disk = [&] {
    absl::StatusOr<NewFile> new_file = NewFile::Create(copy());
    if (!new_file.ok()) ADD_FAILURE() << new_file.status();
    const uint64_t before = BytesReadFromDisk();
    EXPECT_TRUE(DigestSource({}, &*new_file).ok());
    const uint64_t bytes = BytesReadFromDisk() - before;
    fs::remove(copy());
    return bytes;
  };
  DropPages(source());
  const std::vector<bool> pages = PagesInMemory(source());
  const bool dropped = std::ranges::none_of(pages, std::identity());  // not of files that are nowhere but in memory
  const uint64_t cold = read_from_disk();
  EXPECT_GE(cold, dropped ? size : 0);
  ReadBytes(source());
  EXPECT_LT(read_from_disk(), size / 2);
}

TEST_F(DigestFileTest, ACopyHasWhatIsNotYetOnTheDisk) {
  std::string text = SomeBytes(4 * kMiB);
  WriteBytes(source(), text);
  DropPages(source());
  {
    const Descriptor out(source(), O_WRONLY);
    for (const size_t at : {size_t{0}, kMiB + 4095, 3 * kMiB}) {
      ASSERT_EQ(::pwrite(out.fd(), "new", 3, static_cast<off_t>(at)), 3);
      text.replace(at, 3, "new");
    }
  }
  ASSERT_NO_FATAL_FAILURE(ExpectCopied(text));
}

TEST(CopySource, ReadsAsAnyOtherWhatItCannotReadPastThePageCache) {
  const TempDir temp;
  const fs::path path = temp.path() / "file";
  const std::string text = SomeBytes(4 * kMiB + 5);
  WriteBytes(path, text);
  const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto expect_read = [&](const CopySource& source, size_t offset, size_t misalignment) {
    DropPages(path);
    const Placed placed(std::string(text.size() - offset, '?'), misalignment);
    EXPECT_TRUE(source.Read(offset, placed.bytes()).ok());
    EXPECT_TRUE(std::ranges::equal(placed.bytes(), std::as_bytes(std::span(text)).subspan(offset))) << offset;
  };
  {
    const CopySource source(*file);
    expect_read(source, 0, 0);
    expect_read(source, 0, 8);     // memory where no disk reads to
    expect_read(source, 4097, 0);  // where no disk reads from
  }
  // No descriptor is left for a second opening of the file.
  rlimit limit;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const CopySource source(*file);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  expect_read(source, 0, 0);
}

}  // namespace
}  // namespace scion::test
