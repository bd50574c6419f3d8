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
#include <utility>

#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"
#include "tests/engine/model/gguf_mutation.h"
#include "tests/support/tiny_gguf.h"
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
  if (fs::is_regular_file(directory)) return fs::file_size(directory);
  uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

enum Outcome { kOpened = 0, kRefused = 10, kNoLimit = 11 };

// What becomes of opening the directory or file under the limit; a death is the wait status, above 255 or a signal.
// bytes_on_disk: of the files, which do not count.
int OpenUnderLimit(const fs::path& directory, uint64_t bytes_on_disk = 0) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlim_t bytes = AddressSpaceBytes() + FileBytes(directory) - bytes_on_disk + kConstantBytes;
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

TEST_F(AllocationBoundTest, AsManyBlockTypesAsAConfigHolds) {
  for (int count : {65'000, 70'000}) {  // values of a config.json: 65,536
    std::string header = "{", types;
    for (int t = 0; t < count; ++t) {
      const std::string name = "model.layers.1000.mlp.experts." + std::to_string(t);
      header += (t > 0 ? ",\"" : "\"") + name + R"(":{"dtype":"U8","shape":[0,18],"data_offsets":[0,0]})";
      types += (t > 0 ? ",\"" : "\"") + name + R"(":"Q4_0")";
    }
    WriteBytes(trunk_, SafetensorsBytes(header + "}", ""));
    const std::string config = model_.config.dump();
    WriteBytes(dir_.path() / "config.json",
               config.substr(0, config.size() - 1) +
                   R"(,"quantization_config":{"quant_method":"ggml","type":"Q8_0","tensors":{)" + types + "}}}");
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

class GgufAllocationBoundTest : public ::testing::Test {
 protected:
  int OpenUnderLimitAs(const std::string& bytes) {
    WriteBytes(path_, bytes);
    return OpenUnderLimit(path_);
  }
  void SetUp() override { ASSERT_EQ(OpenUnderLimitAs(file_.Bytes()), kOpened) << "the undamaged control"; }

  TempDir dir_;
  const fs::path path_ = dir_.path() / "tiny.gguf";
  test::TinyGguf file_ = test::MakeTinyGguf();
};

TEST_F(GgufAllocationBoundTest, CountsAndLengthsAreNotBelieved) {
  for (uint64_t n : {uint64_t{1} << 28, uint64_t{1} << 32, uint64_t{1} << 40, uint64_t{1} << 61, ~uint64_t{0}}) {
    test::TinyGguf file = file_;
    file.num_tensors = n;
    EXPECT_EQ(OpenUnderLimitAs(file.Bytes()), kRefused) << "tensors: " << n;
    file = file_;
    file.num_keys = n;
    EXPECT_EQ(OpenUnderLimitAs(file.Bytes()), kRefused) << "keys: " << n;
    for (uint32_t type : {0u, 5u, 6u, 8u, 12u}) {
      file = file_;
      file.Set("tokenizer.ggml.tokens", test::GgufArrayOf(type, n, ""));
      EXPECT_EQ(OpenUnderLimitAs(file.Bytes()), kRefused) << "an array of type " << type << ": " << n;
    }
    file = file_;
    file.Set("general.name", test::GgufValueOf(8, test::GgufRaw(n, 8)));
    EXPECT_EQ(OpenUnderLimitAs(file.Bytes()), kRefused) << "a string: " << n;
    file = file_;
    file.Tensor("output.weight").dims[1] = n;
    EXPECT_EQ(OpenUnderLimitAs(file.Bytes()), kRefused) << "rows: " << n;
  }
}

TEST_F(GgufAllocationBoundTest, SizesOfTheModelAreNotBelieved) {
  for (const auto& [key, value] : {std::pair<const char*, uint32_t>{"block_count", kMaxLayers},
                                   {"expert_count", kMaxExpertsPerDomain},
                                   {"embedding_length", kMaxHiddenSize},
                                   {"feed_forward_length", kMaxIntermediateSize}}) {
    file_.Set(std::string("llama.") + key, test::GgufU32(value));
    file_.Set("llama.expert_used_count", test::GgufU32(1));
    EXPECT_EQ(OpenUnderLimitAs(file_.Bytes()), kRefused) << key;
  }
}

// A vocabulary of empty strings costs four times its bytes in the file; the limit on strings keeps that in bounds.
TEST_F(GgufAllocationBoundTest, AsManyStringsAsAllowed) {
  constexpr uint64_t kTokens = kMaxGgufArrayStrings / 2;
  for (const std::string& text : {std::string(), std::string(16, 'x'), std::string(24, 'x')}) {
    std::string strings;
    for (uint64_t i = 0; i < kTokens; ++i) strings += test::GgufRawText(text);
    file_ = test::MakeTinyGguf({.tied = true});
    file_.Set("tokenizer.ggml.tokens", test::GgufArrayOf(8, kTokens, strings));
    file_.Set("tokenizer.ggml.merges", test::GgufArrayOf(8, kTokens, strings));
    file_.Remove("tokenizer.ggml.scores");
    file_.Remove("tokenizer.ggml.token_type");
    // The rows of the embedding are a hole at the end of the file, and do not count: they stay on disk.
    file_.RemoveTensor("token_embd.weight");
    file_.AddTensor("token_embd.weight", {256, 1}, 8);
    const std::string row = std::exchange(file_.tensors.back().data, "");
    file_.tensors.back().dims[1] = kTokens;
    const uint64_t rows = kTokens * row.size();
    WriteBytes(path_, file_.Bytes());
    fs::resize_file(path_, fs::file_size(path_) + rows);
    EXPECT_EQ(OpenUnderLimit(path_, rows), kOpened) << text.size();
  }
}

// 3-D tensors of a few bytes a row become a tensor per expert.
TEST_F(GgufAllocationBoundTest, AsManyExpertsAsAllowedAndMore) {
  for (int layers : {10, 11, 100}) {
    test::TinyGguf file = test::MakeTinyGguf({.num_experts = 1});
    constexpr uint64_t kExperts = kMaxExpertsPerDomain, kHidden = 32;
    file.tensors.clear();
    file.Set("llama.block_count", test::GgufU32(static_cast<uint32_t>(layers)));
    file.Set("llama.embedding_length", test::GgufU32(kHidden));
    file.Set("llama.feed_forward_length", test::GgufU32(1));
    file.Set("llama.expert_count", test::GgufU32(kExperts));
    file.AddTensor("token_embd.weight", {kHidden, 40}, 8);
    file.AddTensor("output_norm.weight", {kHidden}, 0);
    for (int l = 0; l < layers; ++l) {
      const std::string layer = "blk." + std::to_string(l) + ".";
      file.AddTensor(layer + "attn_norm.weight", {kHidden}, 0);
      file.AddTensor(layer + "ffn_norm.weight", {kHidden}, 0);
      file.AddTensor(layer + "attn_q.weight", {kHidden, 32}, 8);
      file.AddTensor(layer + "attn_k.weight", {kHidden, 16}, 8);
      file.AddTensor(layer + "attn_v.weight", {kHidden, 16}, 8);
      file.AddTensor(layer + "attn_output.weight", {32, kHidden}, 8);
      file.AddTensor(layer + "ffn_gate_inp.weight", {kHidden, kExperts}, 1);
      file.AddTensor(layer + "ffn_gate_exps.weight", {kHidden, 1, kExperts}, 2);
      file.AddTensor(layer + "ffn_up_exps.weight", {kHidden, 1, kExperts}, 2);
      file.AddTensor(layer + "ffn_down_exps.weight", {1, kHidden, kExperts}, 1);
    }
    // The data are a hole at the end of the file, and do not count: they stay on disk.
    uint64_t data_bytes = 0;
    for (test::TinyGgufTensor& tensor : file.tensors) {
      tensor.offset = data_bytes;
      data_bytes += (std::exchange(tensor.data, "").size() + 31) / 32 * 32;
    }
    WriteBytes(path_, file.Bytes());
    fs::resize_file(path_, fs::file_size(path_) + data_bytes);
    EXPECT_EQ(OpenUnderLimit(path_, data_bytes), layers == 10 ? kOpened : kRefused) << layers;
  }
}

TEST_F(GgufAllocationBoundTest, RandomDamageCostsNoMore) {
  for (const test::TinyGgufOptions& options : test::kMutatedGgufs) {
    const test::TinyGguf file = test::MakeTinyGguf(options);
    const std::string whole = file.Bytes();
    const size_t header_bytes = file.Header().size();
    // All in one child: what one of them keeps counts against the next.
    const pid_t child = ::fork();
    if (child == 0) {
      const rlim_t bytes = AddressSpaceBytes() + 4 * whole.size() + kConstantBytes / 4;
      const rlimit limit = {bytes, bytes};
      if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(kNoLimit);
      int refused = 0;
      for (uint64_t seed = 0; seed < 400; ++seed) {
        WriteBytes(path_, test::MutateGguf(whole, header_bytes, seed));
        refused += Checkpoint::Open(path_).ok() ? 0 : 1;
      }
      ::_exit(refused > 100 ? kRefused : kOpened);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status, kRefused) << options.architecture;
  }
}

}  // namespace
}  // namespace scion
