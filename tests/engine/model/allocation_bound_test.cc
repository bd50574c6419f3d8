// Opening a model needs no more memory than its files' size plus a stated constant, whatever the files claim.
//
// Each case runs in a child whose address space is limited to what it has, plus the files, plus the constant: an
// allocation beyond that would end it. Not built under ASan and TSan, which reserve terabytes of address space.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>

#include "engine/model/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using test::MakeTinyModel;
using test::ReadBytes;
using test::SafetensorsBytes;
using test::TempDir;
using test::TinyModel;
using test::WriteBytes;

constexpr uint64_t kConstantBytes = 128 << 20;  // checkpoint.h's promise

uint64_t AddressSpaceBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t pages = 0;
  statm >> pages;
  return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

uint64_t FileBytes(const fs::path& directory) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

enum Outcome { kOpened = 0, kRefused = 10, kNoLimit = 11 };

// What becomes of opening the directory under the limit; a death is the wait status, above 255 or a signal.
int OpenUnderLimit(const fs::path& directory) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlim_t bytes = AddressSpaceBytes() + FileBytes(directory) + kConstantBytes;
    const rlimit limit = {bytes, bytes};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(kNoLimit);
    const absl::Status status = Checkpoint::Open(directory).status();
    std::fprintf(stderr, "  %.200s\n", status.ToString().c_str());
    ::_exit(status.ok() ? kOpened : kRefused);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

class AllocationBoundTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteTinyModel(model_, dir_.path());
    ASSERT_EQ(OpenUnderLimit(dir_.path()), kOpened) << "the undamaged control";
  }
  void WriteConfig() { WriteBytes(dir_.path() / "config.json", model_.config.dump()); }

  TempDir dir_;
  TinyModel model_ = MakeTinyModel({.with_index = false});
  const fs::path trunk_ = dir_.path() / "trunk.safetensors";
};

// The limit itself works: without it the other tests could not fail.
TEST_F(AllocationBoundTest, TheLimitEndsAnAllocationBeyondIt) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlim_t bytes = AddressSpaceBytes() + kConstantBytes;
    const rlimit limit = {bytes, bytes};
    ::setrlimit(RLIMIT_AS, &limit);
    std::string text;
    try {
      text.resize(2 * kConstantBytes);
    } catch (const std::bad_alloc&) {
      ::_exit(kRefused);
    }
    ::_exit(kOpened);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), kRefused);
}

TEST_F(AllocationBoundTest, AHeaderLengthIsNotBelieved) {
  std::string bytes = ReadBytes(trunk_);
  for (uint64_t length : {uint64_t{99'999'999}, uint64_t{1} << 40, ~uint64_t{0}}) {
    for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
    WriteBytes(trunk_, bytes);
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused) << length;
  }
}

TEST_F(AllocationBoundTest, AShapeIsNotBelieved) {
  for (const char* shape :
       {"[1099511627776]", "[65536,65536,16]", "[4611686018427387903,2]", "[4294967295,4294967295,0]"}) {
    const std::string header = std::string(R"({"model.embed_tokens.weight":{"dtype":"F32","shape":)") + shape +
                               R"(,"data_offsets":[0,4398046511104]}})";
    WriteBytes(trunk_, SafetensorsBytes(header, "data"));
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused) << shape;
  }
}

TEST_F(AllocationBoundTest, AConfigIsNotBelieved) {
  model_.config["vocab_size"] = 1 << 22;
  model_.config["hidden_size"] = 1 << 17;
  model_.config["num_hidden_layers"] = 1024;
  model_.config["num_experts_per_tok"] = 64;
  model_.config["domains"][0]["num_experts"] = 4096;
  model_.config["domains"][1]["num_experts"] = 4096;
  WriteConfig();
  EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
}

TEST_F(AllocationBoundTest, AFileOfNothingButHeaderCostsItsSize) {
  // The largest header that is allowed, of zeros, in a file with a hole.
  WriteBytes(trunk_, SafetensorsBytes("", ""));
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(uint64_t{kMaxSafetensorsHeaderBytes} >> (8 * i));
  WriteBytes(trunk_, length);
  fs::resize_file(trunk_, 8 + kMaxSafetensorsHeaderBytes);
  EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
}

TEST_F(AllocationBoundTest, AsManyTensorsAsAllowedAndOneMore) {
  for (int count : {kMaxTensors, kMaxTensors + 1}) {
    std::string header = "{";
    for (int t = 0; t < count; ++t) {
      header += (t > 0 ? ",\"" : "\"") + std::to_string(t) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    }
    WriteBytes(trunk_, SafetensorsBytes(header + "}", ""));
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused) << count;
  }
}

TEST_F(AllocationBoundTest, JsonOfManySmallValues) {
  std::string objects = "{\"weight_map\":{", arrays = "{\"weight_map\":[";
  for (int i = 0; i < 3'000'000; ++i) {
    if (i < 1'500'000) objects += "\"" + std::to_string(i) + "\":\"\",";
    arrays += "[],";
  }
  for (const std::string& text : {objects, arrays}) {
    WriteBytes(dir_.path() / "model.safetensors.index.json", text);
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
    WriteBytes(dir_.path() / "scion.lock.json", text);
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
    fs::remove(dir_.path() / "scion.lock.json");
    fs::remove(dir_.path() / "model.safetensors.index.json");
    WriteBytes(dir_.path() / "config.json", text);
    EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
    WriteConfig();
  }
}

TEST_F(AllocationBoundTest, ALockOfAsManyTensorsAsAllowed) {
  LockFile lock;
  lock.files["trunk.safetensors"] = {.size = 1, .sha256 = std::string(64, '0'), .is_data = true, .tensors = {}};
  for (int t = 0; t < kMaxTensors; ++t) {
    lock.files["trunk.safetensors"].tensors["model.layers.1000.mlp.experts." + std::to_string(t)] =
        std::string(64, '0');
  }
  WriteBytes(dir_.path() / kLockFileName, SerializeLockFile(lock));
  lock = {};
  EXPECT_EQ(OpenUnderLimit(dir_.path()), kRefused);
}

TEST_F(AllocationBoundTest, TextsBeyondTheirLimitAreNotRead) {
  for (const char* name :
       {"config.json", "generation_config.json", "scion.lock.json", "model.safetensors.index.json"}) {
    const std::string before = fs::exists(dir_.path() / name) ? ReadBytes(dir_.path() / name) : "";
    WriteBytes(dir_.path() / name, "{");
    fs::resize_file(dir_.path() / name, uint64_t{1} << 40);
    // Its size must not count here: a hole of a terabyte would allow everything.
    const pid_t child = ::fork();
    if (child == 0) {
      const rlim_t bytes = AddressSpaceBytes() + kConstantBytes;
      const rlimit limit = {bytes, bytes};
      ::setrlimit(RLIMIT_AS, &limit);
      ::_exit(absl::IsResourceExhausted(Checkpoint::Open(dir_.path()).status()) ? kRefused : kOpened);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), kRefused) << name;
    fs::remove(dir_.path() / name);
    if (!before.empty()) WriteBytes(dir_.path() / name, before);
  }
}

}  // namespace
}  // namespace scion
