// The cache of packed weights: the same bits as packing anew, and nothing that is stale, damaged or not ours is used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "engine/base/atomic_file.h"
#include "engine/model/model.h"
#include "tests/support/tiny_gguf.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using test::MakeTinyGguf;
using test::MakeTinyModel;
using test::ReadBytes;
using test::TempDir;
using test::WriteBytes;

constexpr int kHeaderPage = 4096;

struct Loaded {
  absl::Status status;
  uint64_t shared_bytes = 0;
  uint64_t bytes = 0;
  std::string logits;  // their bits
  std::vector<PackCacheNote> notes;

  bool AllShared() const { return status.ok() && bytes > 0 && shared_bytes == bytes; }
  int Written() const {
    int n = 0;
    for (const PackCacheNote& note : notes) n += absl::StrContains(note.text, "written to");
    return n;
  }
  int Problems() const {
    int n = 0;
    for (const PackCacheNote& note : notes) n += note.is_problem;
    return n;
  }
  std::string Text() const {
    std::string text;
    for (const PackCacheNote& note : notes) text += note.text + "\n";
    return text;
  }
};

Loaded Load(const fs::path& model_path, const fs::path& pack_directory, WeightMode mode = WeightMode::kAsIs,
            uint64_t min_bytes = 0) {
  Loaded loaded;
  ThreadPool pool(2);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model_path);
  loaded.status = checkpoint.status();
  if (!checkpoint.ok()) return loaded;
  ModelOptions options;
  options.weights = mode;
  options.pack_cache.directory = pack_directory;
  options.pack_cache.min_bytes = min_bytes;
  options.pack_cache.observer = [&](const PackCacheNote& note) { loaded.notes.push_back(note); };
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**checkpoint, options, pool);
  loaded.status = model.status();
  if (!model.ok()) return loaded;
  loaded.bytes = (*model)->weight_bytes();
  loaded.shared_bytes = (*model)->shared_weight_bytes();
  absl::StatusOr<KvCache> cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 2);
  const std::vector<int32_t> prompt = {3, 14, 15, 9, 26, 5, 35, 8, 17, 0, 39};
  for (int domain = 0; domain < static_cast<int>((*model)->spec().domains.size()); ++domain) {
    loaded.status.Update(RunPrompt(**model, *cache, domain, prompt, [&](int, std::span<const float> logits) {
      loaded.logits.append(reinterpret_cast<const char*>(logits.data()), logits.size_bytes());
    }));
  }
  return loaded;
}

std::vector<std::string> Entries(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

fs::file_time_type TimeOf(const fs::path& path) { return fs::last_write_time(path); }

class PackedCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteTinyModel(MakeTinyModel(), model_);
    fresh_ = Load(model_, {});
    ASSERT_TRUE(fresh_.status.ok()) << fresh_.status;
    ASSERT_EQ(fresh_.shared_bytes, 0u);
    ASSERT_FALSE(fresh_.logits.empty());
  }

  // The cache is there and used, with the bits of packing anew.
  void ExpectUsed() {
    const Loaded loaded = Load(model_, packs_);
    EXPECT_TRUE(loaded.AllShared()) << loaded.status << loaded.Text();
    EXPECT_EQ(loaded.Written(), 0) << loaded.Text();
    EXPECT_EQ(loaded.logits, fresh_.logits);
  }
  void MakeCache() {
    const Loaded loaded = Load(model_, packs_);
    ASSERT_EQ(loaded.Written(), 3) << loaded.Text();
    ASSERT_TRUE(loaded.AllShared());
    ExpectUsed();
  }
  // One file is not used but made anew, for a reason that contains `why`.
  void ExpectRebuilt(int files, std::string_view why, std::string_view what) {
    const Loaded loaded = Load(model_, packs_);
    EXPECT_TRUE(loaded.AllShared()) << what << loaded.status << loaded.Text();
    EXPECT_EQ(loaded.Written(), files) << what << loaded.Text();
    EXPECT_THAT(loaded.Text(), ::testing::HasSubstr(std::string(why))) << what;
    EXPECT_EQ(loaded.logits, fresh_.logits) << what;
  }

  TempDir dir_;
  const fs::path model_ = dir_.path() / "model";
  const fs::path packs_ = dir_.path() / "model.scion-pack";
  const fs::path trunk_ = packs_ / "trunk.as-is.pack";
  Loaded fresh_;
};

TEST_F(PackedCacheTest, TheSameBitsFromTheCacheAsFromPackingAnew) {
  MakeCache();
  EXPECT_THAT(Entries(packs_),
              ::testing::ElementsAre("domain-alpha.as-is.pack", "domain-beta.as-is.pack", "trunk.as-is.pack"));
  // It is the files' bytes that are used: other weights give other logits.
  std::string bytes = ReadBytes(trunk_);
  for (size_t i = kHeaderPage; i < bytes.size(); i += 2) bytes[i] = static_cast<char>(bytes[i] ^ 1);
  WriteBytes(trunk_, bytes);
  EXPECT_NE(Load(model_, packs_).logits, fresh_.logits);
}

TEST_F(PackedCacheTest, TheSameBitsOfAGgufFileWithExperts) {
  for (const char* architecture : {"llama", "qwen3moe"}) {
    const fs::path path = dir_.path() / (std::string(architecture) + ".gguf");
    WriteBytes(path, MakeTinyGguf({.architecture = architecture, .num_experts = 4}).Bytes());
    for (WeightMode mode : kAllWeightModes) {
      const Loaded fresh = Load(path, {}, mode);
      ASSERT_TRUE(fresh.status.ok()) << fresh.status;
      const Loaded written = Load(path, PackDirectoryBeside(path), mode);
      const Loaded mapped = Load(path, PackDirectoryBeside(path), mode);
      EXPECT_EQ(written.Written(), 2) << written.Text();
      EXPECT_EQ(mapped.Written(), 0) << mapped.Text();
      EXPECT_TRUE(mapped.AllShared());
      EXPECT_EQ(written.logits, fresh.logits);
      EXPECT_EQ(mapped.logits, fresh.logits);
    }
  }
}

// A gate in bf16 beside an `up` in fp32: the bits of the same values in fp32, in several panels.
TEST_F(PackedCacheTest, TheSameBitsWhereGateAndUpAreOfDifferentTypes) {
  test::TinyModel in_fp32 = MakeTinyModel({.intermediate_size = 200, .dtype = DType::kF32});
  test::TinyModel in_both = in_fp32;
  test::TinyTensor& wide = in_fp32.Tensor("model.layers.0.mlp.gate_proj.weight");
  test::TinyTensor& narrow = in_both.Tensor("model.layers.0.mlp.gate_proj.weight");
  narrow.dtype = DType::kBF16;
  narrow.data.clear();
  for (size_t i = 0; i < wide.data.size(); i += sizeof(float)) {
    float value;
    std::memcpy(&value, wide.data.data() + i, sizeof(value));
    const uint16_t half = F32ToBf16(value);
    value = Bf16ToF32(half);
    std::memcpy(wide.data.data() + i, &value, sizeof(value));
    narrow.data.append(reinterpret_cast<const char*>(&half), sizeof(half));
  }
  const fs::path path = dir_.path() / "both";
  WriteTinyModel(in_fp32, dir_.path() / "fp32");
  WriteTinyModel(in_both, path);
  const Loaded want = Load(dir_.path() / "fp32", {});
  ASSERT_TRUE(want.status.ok()) << want.status;
  EXPECT_EQ(Load(path, {}).logits, want.logits);
  const Loaded written = Load(path, packs_);
  EXPECT_TRUE(written.AllShared()) << written.status << written.Text();
  EXPECT_EQ(written.logits, want.logits);
  const Loaded mapped = Load(path, packs_);
  EXPECT_EQ(mapped.Written(), 0) << mapped.Text();
  EXPECT_EQ(mapped.logits, want.logits);
}

TEST_F(PackedCacheTest, ADomainWithoutWeightsHasNoFile) {
  const fs::path path = dir_.path() / "dense.gguf";
  WriteBytes(path, MakeTinyGguf({.architecture = "llama"}).Bytes());
  const Loaded fresh = Load(path, {});
  ASSERT_TRUE(fresh.status.ok()) << fresh.status;
  for (const int written : {1, 0}) {
    const Loaded loaded = Load(path, packs_);
    EXPECT_EQ(loaded.Written(), written) << loaded.Text();
    EXPECT_THAT(loaded.Text(), ::testing::Not(::testing::HasSubstr("not kept"))) << loaded.Text();
    EXPECT_EQ(loaded.logits, fresh.logits);
  }
  EXPECT_THAT(Entries(packs_), ::testing::ElementsAre("trunk.as-is.pack"));
}

TEST_F(PackedCacheTest, TheSameBitsOfABlockOfSeveralWindows) {
  const fs::path large = dir_.path() / "large";
  WriteTinyModel(MakeTinyModel({.hidden_size = 1024, .intermediate_size = 3300, .moe_intermediate_size = 33}), large);
  const Loaded fresh = Load(large, {}, WeightMode::kF32);
  ASSERT_GT(fresh.bytes, uint64_t{40} << 20);  // 16 MiB are written at once
  EXPECT_EQ(Load(large, packs_, WeightMode::kF32).Written(), 3);
  const Loaded mapped = Load(large, packs_, WeightMode::kF32);
  EXPECT_TRUE(mapped.AllShared()) << mapped.Text();
  EXPECT_EQ(mapped.logits, fresh.logits);
}

TEST_F(PackedCacheTest, EachWeightModeHasFilesOfItsOwn) {
  MakeCache();
  const Loaded other = Load(model_, packs_, WeightMode::kF32);
  EXPECT_EQ(other.Written(), 3);
  EXPECT_EQ(other.logits, Load(model_, {}, WeightMode::kF32).logits);
  ExpectUsed();
  // A file of another mode under this one's name is not taken for it.
  fs::copy_file(packs_ / "trunk.fp32.pack", trunk_, fs::copy_options::overwrite_existing);
  ExpectRebuilt(1, "weights fp32", "fp32 as as-is");
  ExpectUsed();
}

TEST_F(PackedCacheTest, ASourceOfAnotherTimeIsPackedAnew) {
  MakeCache();
  const fs::path source = model_ / "domains/beta.safetensors";
  fs::last_write_time(source, TimeOf(source) + std::chrono::nanoseconds(1));
  ExpectRebuilt(1, "beta.safetensors", "one nanosecond later");
  ExpectUsed();
}

TEST_F(PackedCacheTest, OtherWeightsOfTheSameSizeAndTimeArePackedAnew) {
  MakeCache();
  const fs::path source = model_ / "trunk.safetensors";
  const fs::file_time_type time = TimeOf(source);
  WriteTinyModel(MakeTinyModel({.seed = 2}), model_);
  for (const char* name : {"trunk", "domains/alpha", "domains/beta"}) {
    fs::last_write_time(model_ / (std::string(name) + ".safetensors"), time);
  }
  const Loaded fresh = Load(model_, {});
  ASSERT_NE(fresh.logits, fresh_.logits);
  fresh_ = fresh;
  ExpectRebuilt(3, "samples", "the same header, size and time");
  ExpectUsed();
}

TEST_F(PackedCacheTest, AnotherModelsFileIsNotTaken) {
  MakeCache();
  const fs::path other = dir_.path() / "other";
  WriteTinyModel(MakeTinyModel({.hidden_size = 64}), other);
  const Loaded loaded = Load(other, packs_);
  EXPECT_EQ(loaded.Written(), 3) << loaded.Text();
  EXPECT_EQ(loaded.logits, Load(other, {}).logits);
}

TEST_F(PackedCacheTest, ADamagedHeaderIsNeverUsed) {
  MakeCache();
  const std::string whole = ReadBytes(trunk_);
  // Every word and number of the header, and the padding behind it.
  std::vector<size_t> places;
  const size_t header_bytes = whole.find('\0');
  for (size_t i = 0; i < header_bytes; ++i) {
    if (i == 0 || whole[i - 1] == ' ' || whole[i - 1] == '\n') places.push_back(i);
  }
  places.push_back(header_bytes);
  ASSERT_GE(places.size(), 100u);
  for (size_t place : places) {
    std::string damaged = whole;
    damaged[place] = static_cast<char>(damaged[place] ^ 1);
    WriteBytes(trunk_, damaged);
    ExpectRebuilt(1, "anew: it says", "byte " + std::to_string(place));
    EXPECT_EQ(ReadBytes(trunk_), whole);
    if (HasFailure()) return;
  }
  ExpectUsed();
}

TEST_F(PackedCacheTest, AFileOfAnotherSizeIsNeverUsed) {
  MakeCache();
  const std::string whole = ReadBytes(trunk_);
  for (size_t size : {size_t{0}, size_t{1}, size_t{100}, size_t{4095}, size_t{4096}, whole.size() / 2,
                      whole.size() - 4096, whole.size() - 1}) {
    WriteBytes(trunk_, whole.substr(0, size));
    ExpectRebuilt(1, "anew: it", std::to_string(size));
  }
  WriteBytes(trunk_, whole + "x");
  ExpectRebuilt(1, "anew: it has", "one byte more");
  ExpectUsed();
}

TEST_F(PackedCacheTest, AnythingButAFileOfOurOwnIsNotBelieved) {
  MakeCache();
  ::chmod(trunk_.c_str(), 0666);
  ExpectRebuilt(1, "others than its owner", "writable by all");
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown(trunk_.c_str(), 4711, 0), 0);
    ExpectRebuilt(1, "belongs to another user", "another owner");
    // Unless the model is the same user's.
    ASSERT_EQ(::chown(trunk_.c_str(), 4711, 0), 0);
    ASSERT_EQ(::chown((model_ / "trunk.safetensors").c_str(), 4711, 0), 0);
    ExpectUsed();
  }
  fs::remove(trunk_);
  ASSERT_EQ(::mkfifo(trunk_.c_str(), 0600), 0);
  ExpectRebuilt(1, "not a regular file", "a FIFO");
  ExpectUsed();
}

TEST_F(PackedCacheTest, WithoutAPlaceTheModelIsServedAllTheSame) {
  WriteBytes(packs_, "a file where the directory should be");
  const Loaded loaded = Load(model_, packs_);
  EXPECT_EQ(loaded.logits, fresh_.logits);
  EXPECT_EQ(loaded.shared_bytes, 0u);
  EXPECT_EQ(loaded.Problems(), 1) << "said once, not for every file: " << loaded.Text();
}

TEST_F(PackedCacheTest, OnAFullDiskTheModelIsServedAndNothingIsLeft) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {8192, 8192};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const Loaded loaded = Load(model_, packs_);
    const bool ok = loaded.logits == fresh_.logits && loaded.Problems() == 1 && loaded.shared_bytes == 0 &&
                    Entries(packs_).empty() && !fs::exists(packs_);
    ::_exit(ok ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  MakeCache();
}

TEST_F(PackedCacheTest, WhatAKilledWriterLeftIsRemovedAndWhatALivingOneWritesStays) {
  fs::create_directory(packs_);
  const fs::path abandoned = packs_ / ".trunk.as-is.pack.1f2e3d.tmp";
  WriteBytes(abandoned, "half");
  const fs::path foreign = packs_ / "notes.tmp";
  WriteBytes(foreign, "somebody's");
  absl::StatusOr<AtomicFileWriter> living = AtomicFileWriter::Create(packs_ / "trunk.fp32.pack");
  ASSERT_TRUE(living.ok());
  ASSERT_TRUE(living->Append("half").ok());
  MakeCache();
  EXPECT_FALSE(fs::exists(abandoned));
  EXPECT_TRUE(fs::exists(foreign));
  EXPECT_TRUE(living->Commit().ok());
  EXPECT_TRUE(fs::exists(packs_ / "trunk.fp32.pack"));
}

TEST_F(PackedCacheTest, SeveralThatStartAtOnceAllServe) {
  std::vector<Loaded> loaded(4);
  {
    std::vector<std::jthread> threads;
    for (Loaded& l : loaded) threads.emplace_back([&] { l = Load(model_, packs_); });
  }
  for (const Loaded& l : loaded) {
    EXPECT_EQ(l.logits, fresh_.logits);
    EXPECT_EQ(l.Problems(), 0) << l.Text();
  }
  EXPECT_EQ(Entries(packs_).size(), 3u);
  ExpectUsed();
}

TEST_F(PackedCacheTest, ASmallModelIsNotKept) {
  const Loaded loaded = Load(model_, packs_, WeightMode::kAsIs, fresh_.bytes + 1);
  EXPECT_EQ(loaded.logits, fresh_.logits);
  EXPECT_TRUE(loaded.notes.empty());
  EXPECT_FALSE(fs::exists(packs_));
  EXPECT_TRUE(Load(model_, packs_, WeightMode::kAsIs, fresh_.bytes).AllShared());
}

TEST(PackDirectoryTest, BesideTheModelOrByItsWholePath) {
  TempDir dir;
  const fs::path root = fs::canonical(dir.path());
  fs::create_directory(root / "demo");
  fs::create_directory_symlink(root / "demo", root / "link");
  EXPECT_EQ(PackDirectoryBeside(root / "demo"), root / "demo.scion-pack");
  EXPECT_EQ(PackDirectoryBeside(root / "demo/"), root / "demo.scion-pack");
  EXPECT_EQ(PackDirectoryBeside(root / "link"), root / "demo.scion-pack");
  EXPECT_EQ(PackDirectoryBeside(root / "x.gguf"), root / "x.gguf.scion-pack");
  const fs::path in = PackDirectoryIn("/packs", root / "demo");
  EXPECT_EQ(in.parent_path(), "/packs");
  EXPECT_EQ(in, PackDirectoryIn("/packs", root / "link"));
  fs::create_directories(root / "b/demo");
  EXPECT_NE(in, PackDirectoryIn("/packs", root / "b/demo"));
}

}  // namespace
}  // namespace scion
