#include "engine/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/tiny_model.h"

namespace scion {
namespace {

using test::TempDir;
using test::WriteBytes;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class FileTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Read(const ReadOnlyFile& file, uint64_t offset, size_t bytes) {
    std::string text(bytes, '\0');
    absl::Status status = file.Read(offset, std::as_writable_bytes(std::span(text)));
    if (!status.ok()) return status;
    return text;
  }

  TempDir dir_;
  const std::filesystem::path path_ = dir_.path() / "file";
};

TEST_F(FileTest, ReadsAnyRangeAndNoByteBeyond) {
  WriteBytes(path_, "0123456789");
  const auto file = ReadOnlyFile::Open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->size(), 10u);
  EXPECT_EQ(*Read(*file, 3, 4), "3456");
  EXPECT_EQ(*Read(*file, 0, 10), "0123456789");
  EXPECT_EQ(*Read(*file, 10, 0), "");
  EXPECT_EQ(Read(*file, 9, 2).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(*file, 11, 0).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(*file, UINT64_MAX, 2).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(FileTest, AFileThatShrankIsAnErrorThatNamesIt) {
  WriteBytes(path_, std::string(100000, 'x'));
  const auto file = ReadOnlyFile::Open(path_);
  ASSERT_EQ(::truncate(path_.c_str(), 50000), 0);
  const absl::Status status = Read(*file, 40000, 20000).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr(path_.string()));
  EXPECT_THAT(Message(status), HasSubstr("50000"));
  EXPECT_TRUE(Read(*file, 0, 50000).ok());
}

TEST_F(FileTest, WhatIsNotARegularFileIsRefusedWithoutWaiting) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  const std::filesystem::path socket_path = dir_.path() / "socket";
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket_path.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  for (const std::filesystem::path& path : {path_, socket_path, dir_.path(), std::filesystem::path("/dev/null")}) {
    const absl::Status status = ReadOnlyFile::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(path.string()));
    EXPECT_THAT(Message(status), HasSubstr("not a regular file"));
  }
  ::close(fd);
}

TEST_F(FileTest, AFileThatIsNotThereIsNotFound) {
  const absl::Status status = ReadOnlyFile::Open(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr(path_.string()));
}

TEST_F(FileTest, MovingHandsTheDescriptorOver) {
  WriteBytes(path_, "abc");
  ReadOnlyFile a = *ReadOnlyFile::Open(path_);
  ReadOnlyFile b = std::move(a);
  EXPECT_EQ(a.fd(), -1);
  a = std::move(b);
  EXPECT_EQ(*Read(a, 1, 2), "bc");
}

TEST_F(FileTest, ATextBeyondTheLimitIsRefusedAndTheLimitNamed) {
  WriteBytes(path_, "12345");
  EXPECT_EQ(*ReadTextFile(path_, 5), "12345");
  const absl::Status status = ReadTextFile(path_, 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("limit of 4"));
}

TEST_F(FileTest, ErrnoBecomesTheStatedCode) {
  const std::pair<int, absl::StatusCode> kCases[] = {
      {ENOENT, absl::StatusCode::kNotFound},          {EACCES, absl::StatusCode::kPermissionDenied},
      {EPERM, absl::StatusCode::kPermissionDenied},   {EROFS, absl::StatusCode::kPermissionDenied},
      {ENOSPC, absl::StatusCode::kResourceExhausted}, {EDQUOT, absl::StatusCode::kResourceExhausted},
      {EEXIST, absl::StatusCode::kAlreadyExists},     {EIO, absl::StatusCode::kInternal}};
  for (const auto& [error, code] : kCases) {
    const absl::Status status = ErrnoStatus(error, "write", "/some/path");
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(Message(status), std::string("write: /some/path: ") + std::strerror(error));
  }
}

}  // namespace
}  // namespace scion
