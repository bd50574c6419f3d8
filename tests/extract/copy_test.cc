// Files written piece by piece, past the page cache or not; and what is hashed and copied in one reading.

#include <algorithm>
#include <memory>

#include "engine/base/sha256.h"
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
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> memory_;
  std::span<std::byte> bytes_;
};

TEST(NewFile, HasTheBytesThatWereAppendedWhateverThePieces) {
  const TempDir temp;
  int n = 0;
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{4095}, kMiB - 1, kMiB, kMiB + 1, 3 * kMiB + 4096, 5 * kMiB + 777}) {
    const std::string text = SomeBytes(size);
    for (const size_t misalignment : {0, 8}) {
      const Placed placed(text, misalignment);
      for (const size_t piece : {size + 1, size_t{777'777}, kMiB, kMiB + 4096, size_t{10'000}}) {
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
    absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(source());
    if (!file.ok()) return file.status();
    Progress silent(nullptr, "", text.size(), Progress::Unit::kBytes);
    return DigestFile(*file, tensors, copy, silent);
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
  for (const size_t size : {size_t{100}, kMiB, 8 * kMiB, 21 * kMiB + 5}) {
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
  WriteBytes(source(), SomeBytes(20 * kMiB));
  const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(source());
  ASSERT_TRUE(file.ok()) << file.status();
  fs::resize_file(source(), 12 * kMiB + 1);
  Progress silent(nullptr, "", 1, Progress::Unit::kBytes);
  const std::vector<TensorInfo> tensors = {Tensor("all", 0, 20 * kMiB)};
  EXPECT_EQ(DigestFile(*file, tensors, nullptr, silent).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace scion::test
