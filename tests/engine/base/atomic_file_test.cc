#include "engine/base/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <iterator>
#include <span>
#include <string>
#include <utility>

#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using test::ReadBytes;
using test::TempDir;
using test::WriteBytes;
using ::testing::HasSubstr;

class AtomicFileTest : public ::testing::Test {
 protected:
  int NumEntries() const {
    return static_cast<int>(std::distance(fs::directory_iterator(dir_.path()), fs::directory_iterator()));
  }

  TempDir dir_;
  const fs::path target_ = dir_.path() / "target";
};

TEST_F(AtomicFileTest, NothingIsSeenBeforeCommitAndEverythingAfter) {
  WriteBytes(target_, "old");
  auto writer = AtomicFileWriter::Create(target_);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Append("new ").ok());
  ASSERT_TRUE(writer->Append("text").ok());
  EXPECT_EQ(ReadBytes(target_), "old");
  EXPECT_EQ(writer->bytes_written(), 8u);
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(ReadBytes(target_), "new text");
  EXPECT_EQ(NumEntries(), 1);
}

TEST_F(AtomicFileTest, PartsAreWrittenAtTheirPlacesInAnyOrder) {
  auto writer = AtomicFileWriter::Create(target_);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Reserve(6).ok());
  ASSERT_TRUE(writer->WriteAt(3, std::as_bytes(std::span("def", 3))).ok());
  ASSERT_TRUE(writer->WriteAt(0, std::as_bytes(std::span("abc", 3))).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(ReadBytes(target_), "abcdef");
}

TEST_F(AtomicFileTest, FilesOfKilledWritersAreRemovedAndNoOthers) {
  for (const char* name : {".a.pack.12ab.tmp", ".b.pack.1.tmp", ".a.text.12ab.tmp", "a.pack.12ab.tmp", ".pack.tmp",
                           ".tmp", "a.pack", ".a.pack.12ab"}) {
    WriteBytes(dir_.path() / name, "x");
  }
  auto living = AtomicFileWriter::Create(dir_.path() / "c.pack");
  ASSERT_TRUE(living.ok()) << living.status();
  RemoveAbandonedFiles(dir_.path(), ".pack");
  EXPECT_EQ(NumEntries(), 7);
  EXPECT_FALSE(fs::exists(dir_.path() / ".a.pack.12ab.tmp"));
  EXPECT_FALSE(fs::exists(dir_.path() / ".b.pack.1.tmp"));
  EXPECT_TRUE(living->Commit().ok());
  EXPECT_TRUE(fs::exists(dir_.path() / "c.pack"));
  RemoveAbandonedFiles(dir_.path() / "none", ".pack");
}

TEST_F(AtomicFileTest, WithoutCommitNothingIsLeft) {
  {
    auto writer = AtomicFileWriter::Create(target_);
    ASSERT_TRUE(writer->Append("half").ok());
    EXPECT_EQ(NumEntries(), 1);
  }
  EXPECT_EQ(NumEntries(), 0);
  auto writer = AtomicFileWriter::Create(target_);
  writer->Abort();
  EXPECT_EQ(NumEntries(), 0);
  AtomicFileWriter first = *AtomicFileWriter::Create(target_);
  first = *AtomicFileWriter::Create(dir_.path() / "other");
  EXPECT_EQ(NumEntries(), 1) << "a writer that is assigned to must remove its own temporary file";
}

TEST_F(AtomicFileTest, MovedWritersCommitOnce) {
  auto made = AtomicFileWriter::Create(target_);
  AtomicFileWriter writer = *std::move(made);
  ASSERT_TRUE(writer.Append("x").ok());
  AtomicFileWriter last = std::move(writer);
  writer.Abort();
  ASSERT_TRUE(last.Commit().ok());
  EXPECT_EQ(ReadBytes(target_), "x");
}

TEST_F(AtomicFileTest, AMissingDirectoryIsNamed) {
  const fs::path path = dir_.path() / "missing" / "file";
  const absl::Status status = WriteFileAtomically(path, "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path.string()));
}

TEST_F(AtomicFileTest, ATargetThatIsADirectoryStaysAndNothingIsLeft) {
  fs::create_directory(target_);
  const absl::Status status = WriteFileAtomically(target_, "x");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(target_.string()));
  EXPECT_TRUE(fs::is_directory(target_));
  EXPECT_EQ(NumEntries(), 1);
}

// /dev/full is a disk that is always full, but a rename can't reach it; a limit on file size fails in the same place.
TEST_F(AtomicFileTest, AFailedWriteNamesTheTargetAndLeavesTheOldFile) {
  WriteBytes(target_, "old");
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const absl::Status status = WriteFileAtomically(target_, std::string(8192, 'x'));
    const bool named = std::string(status.message()).find("write: " + target_.string()) != std::string::npos;
    ::_exit(!status.ok() && named ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ReadBytes(target_), "old");
  EXPECT_EQ(NumEntries(), 1);
}

TEST_F(AtomicFileTest, ABareNameLiesInTheCurrentDirectory) {
  const fs::path before = fs::current_path();
  fs::current_path(dir_.path());
  EXPECT_TRUE(WriteFileAtomically("bare", "x").ok());
  fs::current_path(before);
  EXPECT_EQ(ReadBytes(dir_.path() / "bare"), "x");
}

TEST_F(AtomicFileTest, SyncingADirectoryThatIsNotThereIsAnError) {
  EXPECT_TRUE(FsyncDirectory(dir_.path()).ok());
  EXPECT_EQ(FsyncDirectory(target_).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace scion
