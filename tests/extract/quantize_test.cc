// What a quantised model consists of, that it computes what rounding at load computes, and what Quantize refuses.

#include "extract/quantize.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <limits>
#include <memory>

#include "engine/base/sha256.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "extract/inspect.h"
#include "extract/staged_directory.h"
#include "tests/extract/extract_fixture.h"
#include "tests/support/tiny_gguf.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const fs::path kGolden = fs::path(SCION_SOURCE_DIR) / "tests/golden";
constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0};

// Rows that blocks fill, but for down projections of experts: those have rows of 40.
TinyModelOptions Shape() {
  TinyModelOptions options;
  options.hidden_size = 64;
  options.intermediate_size = 96;
  options.moe_intermediate_size = 40;
  return options;
}

// Bytes of a tensor of a file.
std::string DataOf(const std::string& file, const std::string& name) {
  for (const TensorPlace& tensor : TensorsIn(file)) {
    if (tensor.name == name) return file.substr(tensor.begin, tensor.end - tensor.begin);
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

class QuantizeTest : public ::testing::Test {
 protected:
  void WriteModel(const TinyModelOptions& options) {
    fs::remove_all(model());
    WriteTinyModel(MakeTinyModel(options), model());
  }
  absl::StatusOr<QuantizeResult> Run(DType type) { return Run(type, out()); }
  absl::StatusOr<QuantizeResult> Run(DType type, const fs::path& out) {
    return Quantize({.model = model(), .out = out, .type = type, .version = "test", .now = TestTime()});
  }
  void MustRun(DType type) {
    fs::remove_all(out());
    const auto result = Run(type);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  // Refused with this code and message, and nothing is left anywhere.
  void ExpectRefused(DType type, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Run(type).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_FALSE(fs::exists(StagingPath(out())));
  }

  fs::path temp() const { return temp_.path(); }
  fs::path model() const { return temp_.path() / "model"; }
  fs::path out() const { return temp_.path() / "out"; }

 private:
  TempDir temp_;
};

// ---- The bytes -----------------------------------------------------------------------------------------------------

TEST_F(QuantizeTest, BlocksAreThoseOfTheGgufPackage) {
  const std::string golden = ReadBytes(kGolden / "quantize/blocks.safetensors");
  const std::string values = DataOf(golden, "values");  // [32, 64]
  const std::string query = "model.layers.1.self_attn.q_proj.weight", embedding = "model.embed_tokens.weight";
  const std::string expert = "model.layers.2.mlp.domains.beta.experts.1.up_proj.weight";  // [40, 64]
  for (const DType type : kTypes) {
    TinyModelOptions options = Shape();
    options.dtype = DType::kF32;
    TinyModel tiny = MakeTinyModel(options);
    for (const std::string& name : {query, embedding, expert}) {
      tiny.Tensor(name).data.replace(0, values.size(), values);
    }
    fs::remove_all(model());
    WriteTinyModel(tiny, model());
    MustRun(type);
    const std::string trunk = ReadBytes(out() / "trunk.safetensors");
    const std::string blocks = DataOf(golden, type == DType::kQ8_0 ? "q8_0" : "q4_0");
    // Not EXPECT_EQ, which would print kilobytes.
    EXPECT_TRUE(DataOf(trunk, query) == blocks);
    EXPECT_TRUE(DataOf(ReadBytes(out() / "domains/beta.safetensors"), expert).starts_with(blocks));
    EXPECT_TRUE(DataOf(trunk, embedding).starts_with(DataOf(golden, "q8_0")));
  }
}

TEST_F(QuantizeTest, WhatIsNoMatrixOrHasNoWholeBlocksKeepsItsBytes) {
  TinyModelOptions options = Shape();
  options.hidden_size = 32;
  options.moe_intermediate_size = 41;  // an odd number of blocks of 34 and 18 bytes, so that order matters to alignment
  options.dtype = DType::kF32;
  options.route_weights = true;
  WriteModel(options);
  for (const DType type : kTypes) {
    MustRun(type);
    int same = 0, blocks = 0;
    for (const char* path : {"trunk.safetensors", "domains/alpha.safetensors", "domains/beta.safetensors"}) {
      const std::string source = ReadBytes(model() / path), written = ReadBytes(out() / path);
      ASSERT_EQ(TensorsIn(source).size(), TensorsIn(written).size());
      for (const TensorPlace& tensor : TensorsIn(written)) {
        EXPECT_EQ(tensor.begin % DTypeBytes(tensor.dtype), 0u) << tensor.name;
        const bool is_down_of_expert =
            tensor.name.find(".experts.") != std::string::npos && tensor.name.find("down_proj") != std::string::npos;
        const bool is_blocks = (tensor.name.find("_proj.") != std::string::npos && !is_down_of_expert) ||
                               tensor.name == "model.embed_tokens.weight";
        EXPECT_EQ(tensor.dtype == DType::kU8, is_blocks) << tensor.name;
        ++(is_blocks ? blocks : same);
        if (!is_blocks) {
          EXPECT_EQ(DataOf(written, tensor.name), DataOf(source, tensor.name)) << tensor.name;
        }
      }
    }
    EXPECT_GT(same, 20);
    EXPECT_GT(blocks, 20);
  }
}

TEST_F(QuantizeTest, ResultCountsMatricesAndBytes) {
  WriteModel(Shape());
  const auto result = Run(DType::kQ4_0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->quantized, 1 + 3 * 4 + 3 + 2 * 5 * 2);
  EXPECT_EQ(result->left_as_is, 2 * 5);
  uint64_t bytes = 0, model_bytes = 0;
  for (const char* path : {"trunk.safetensors", "domains/alpha.safetensors", "domains/beta.safetensors"}) {
    bytes += fs::file_size(out() / path);
    model_bytes += fs::file_size(model() / path);
  }
  EXPECT_EQ(result->bytes, bytes);
  EXPECT_EQ(result->model_bytes, model_bytes);
  EXPECT_LT(bytes, model_bytes * 6 / 10);
}

TEST_F(QuantizeTest, ConfigKeepsItsKeysAndSaysWhatTheBlocksAre) {
  TinyModelOptions options = Shape();
  options.tie_word_embeddings = false;
  WriteModel(options);
  auto expected = MakeTinyModel(options).config;
  MustRun(DType::kQ4_0);
  expected["quantization_config"] = {{"quant_method", "ggml"},
                                     {"type", "Q4_0"},
                                     {"tensors", {{"model.embed_tokens.weight", "Q8_0"}, {"lm_head.weight", "Q8_0"}}}};
  // ordered_json compares the keys' order too.
  EXPECT_EQ(nlohmann::ordered_json::parse(ReadBytes(out() / "config.json")), expected);
  MustRun(DType::kQ8_0);
  expected["quantization_config"] = {{"quant_method", "ggml"}, {"type", "Q8_0"}};
  EXPECT_EQ(nlohmann::ordered_json::parse(ReadBytes(out() / "config.json")), expected);
}

TEST_F(QuantizeTest, LockIndexAndLineageAreThoseOfWhatWasWritten) {
  WriteModel(Shape());
  WriteBytes(model() / "tokenizer.json", "{\"vocab\": {}}\n");
  ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
  const auto before = ReadTree(model());
  MustRun(DType::kQ4_0);
  EXPECT_EQ(ReadTree(model()), before);
  EXPECT_THAT(Names(temp()), ElementsAre("model", "out"));

  auto files = ReadTree(out());
  EXPECT_EQ(files.at("tokenizer.json"), before.at("tokenizer.json"));
  const auto lock = nlohmann::json::parse(files.at("scion.lock.json"));
  const auto index = nlohmann::json::parse(files.at("model.safetensors.index.json"));
  files.erase("scion.lock.json");
  EXPECT_EQ(lock["files"].size(), files.size());
  std::map<std::string, std::string> weight_map;
  size_t bytes_of_tensors = 0;
  for (const auto& [path, bytes] : files) {
    ASSERT_TRUE(lock["files"].contains(path)) << path;
    EXPECT_EQ(lock["files"][path]["sha256"], Sha256Hex(bytes)) << path;
    EXPECT_EQ(lock["files"][path]["size"], bytes.size()) << path;
    if (!path.ends_with(".safetensors")) continue;
    EXPECT_EQ(lock["files"][path]["tensors"].size(), TensorsIn(bytes).size());
    for (const TensorPlace& t : TensorsIn(bytes)) {
      EXPECT_EQ(lock["files"][path]["tensors"][t.name], Sha256Hex(bytes.substr(t.begin, t.end - t.begin))) << t.name;
      weight_map[t.name] = path;
      bytes_of_tensors += t.end - t.begin;
    }
  }
  EXPECT_EQ((index["weight_map"].get<std::map<std::string, std::string>>()), weight_map);
  EXPECT_EQ(index["metadata"]["total_size"], bytes_of_tensors);
  EXPECT_EQ(lock["domains"]["beta"]["file"], "domains/beta.safetensors");
  ASSERT_EQ(lock["lineage"].size(), 2u);
  const nlohmann::json entry = {
      {"verb", "quantize"},
      {"time", "2023-11-14T22:13:20Z"},
      {"version", "test"},
      {"source", "model"},
      {"domains", {"alpha", "beta"}},
      {"source_lock_sha256", nlohmann::json::parse(before.at("scion.lock.json"))["lock_sha256"]}};
  EXPECT_EQ(lock["lineage"][1], entry);
  const auto differences = CheckHashes(out(), nullptr);
  ASSERT_TRUE(differences.ok());
  EXPECT_TRUE(differences->empty());
}

// ---- What it computes ----

std::string LogitBytes(const fs::path& directory, const std::string& domain, kernels::Tier tier, WeightMode weights) {
  ThreadPool pool(2);
  const auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return {};
  ModelOptions options;
  options.tier = tier;
  options.weights = weights;
  auto model = Model::Load(**checkpoint, options, pool);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) return {};
  auto cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 8);
  std::vector<int32_t> prompt;
  for (int i = 0; i < 97; ++i) prompt.push_back((i * 37 + 11) % 97);
  std::string bytes;
  const absl::Status status =
      RunPrompt(**model, *cache, *(*model)->spec().FindDomain(domain), prompt, [&](int, std::span<const float> logits) {
        bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size_bytes());
      });
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

// Rounding at load leaves the embedding alone, of which rows are looked up and not multiplied; on disk it is rounded.
// So the source is given the rounded embedding's blocks: all other matrices are still its own.
void GiveEmbedding(const fs::path& from, const fs::path& to) {
  auto config = nlohmann::ordered_json::parse(ReadBytes(to / "config.json"));
  config["quantization_config"] = {{"quant_method", "ggml"}, {"type", "Q8_0"}};
  const bool is_llama = config["model_type"] != "scion";
  WriteBytes(to / "config.json", config.dump());
  const std::string path = is_llama ? "model.safetensors" : "trunk.safetensors";
  const std::string name = "model.embed_tokens.weight";
  const std::string file = ReadBytes(to / path), blocks = DataOf(ReadBytes(from / path), name);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  auto header = nlohmann::ordered_json::parse(file.substr(8, header_bytes));
  std::string data;
  for (auto& [tensor, info] : header.items()) {
    if (tensor == "__metadata__") continue;
    const std::string bytes = tensor == name ? blocks : DataOf(file, tensor);
    if (tensor == name) {
      info["dtype"] = "U8";
      info["shape"][1] = blocks.size() / info["shape"][0].get<size_t>();
    }
    info["data_offsets"] = {data.size(), data.size() + bytes.size()};
    data += bytes;
  }
  WriteBytes(to / path, SafetensorsBytes(header.dump(), data));
}

TEST_F(QuantizeTest, QuantisedOnDiskHasTheBitsOfRoundedAtLoad) {
  TinyModelOptions spread = Shape();  // k = 2, every other layer sparse, a head of its own
  spread.num_layers = 4;
  spread.sparse_layers = {0, 2};
  spread.num_experts_per_tok = 2;
  spread.route_weights = true;
  spread.tie_word_embeddings = false;
  TinyModelOptions wide = Shape();
  wide.dtype = DType::kF32;
  wide.moe_intermediate_size = 64;
  TinyModelOptions half = Shape();
  half.dtype = DType::kF16;
  half.model_type = "llama";
  half.tie_word_embeddings = false;
  for (const TinyModelOptions& shape : {Shape(), spread, wide, half}) {
    WriteModel(shape);
    const std::string domain = shape.model_type == "llama" ? "default" : "beta";
    for (const DType type : kTypes) {
      MustRun(type);
      const fs::path source = temp() / "with_embedding";
      fs::remove_all(source);
      fs::copy(model(), source, fs::copy_options::recursive);
      GiveEmbedding(out(), source);
      for (const kernels::Tier tier : kernels::SupportedTiers()) {
        const WeightMode mode = type == DType::kQ8_0 ? WeightMode::kQ8 : WeightMode::kQ4;
        const std::string expected = LogitBytes(source, domain, tier, mode);
        EXPECT_TRUE(LogitBytes(out(), domain, tier, WeightMode::kAsIs) == expected);
        // A control: without rounding the bits are others.
        EXPECT_TRUE(LogitBytes(source, domain, tier, WeightMode::kAsIs) != expected);
        EXPECT_TRUE(LogitBytes(model(), domain, tier, mode) != expected);
      }
    }
  }
}

// Their hidden size of 48 is no whole number of blocks: the embedding stays, and what reads heads or experts' inner
// widths is quantised.
TEST_F(QuantizeTest, GateRoutedDirectoriesOfTransformersAreQuantisedToo) {
  struct Case {
    std::string name, quantised, gate;
    size_t files;
  };
  for (const Case& c :
       {Case{"qwen3_moe_step", "model.layers.1.mlp.experts.4.down_proj.weight", "model.layers.1.mlp.gate.weight", 5},
        Case{"mixtral", "model.layers.0.self_attn.o_proj.weight", "model.layers.0.block_sparse_moe.gate.weight", 1}}) {
    fs::remove_all(model());
    fs::copy(kGolden / "models" / c.name, model(), fs::copy_options::recursive);
    for (const DType type : kTypes) {
      MustRun(type);
      const auto checkpoint = Checkpoint::Open(out());
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      EXPECT_EQ((*(*checkpoint)->Find(c.quantised))->dtype, type);
      EXPECT_EQ((*(*checkpoint)->Find(c.gate))->dtype, DType::kBF16);
      EXPECT_EQ((*checkpoint)->files().size(), c.files);
      const kernels::Tier tier = kernels::SupportedTiers().back();
      const WeightMode mode = type == DType::kQ8_0 ? WeightMode::kQ8 : WeightMode::kQ4;
      EXPECT_TRUE(LogitBytes(out(), "default", tier, WeightMode::kAsIs) == LogitBytes(model(), "default", tier, mode));
    }
  }
}

// ---- Cuts of quantised models ----

TEST_F(QuantizeTest, SliceAndQuantizeGiveTheSameFilesInEitherOrder) {
  TinyModelOptions options = Shape();
  options.tie_word_embeddings = false;
  WriteModel(options);
  for (const DType type : kTypes) {
    MustRun(type);
    for (const char* path : {"cut", "cut_first", "then_quantized"}) fs::remove_all(temp() / path);
    ASSERT_TRUE(Cut(out(), {"beta"}, temp() / "cut").ok());
    ASSERT_TRUE(Cut(model(), {"beta"}, temp() / "cut_first").ok());
    ASSERT_TRUE(Quantize({.model = temp() / "cut_first",
                          .out = temp() / "then_quantized",
                          .type = type,
                          .version = "test",
                          .now = TestTime()})
                    .ok());
    auto one = ReadTree(temp() / "cut"), other = ReadTree(temp() / "then_quantized");
    one.erase("scion.lock.json");  // the lineage differs
    other.erase("scion.lock.json");
    EXPECT_TRUE(one == other);
  }
}

TEST_F(QuantizeTest, VerifyProvesACutOfAQuantisedModel) {
  WriteModel(Shape());
  for (const DType type : kTypes) {
    MustRun(type);
    const fs::path cut = temp() / "cut";
    fs::remove_all(cut);
    ASSERT_TRUE(Cut(out(), {"beta"}, cut).ok());
    for (const kernels::Tier tier : kernels::SupportedTiers()) {
      VerifyOptions verify = OptionsFor(cut, out());
      verify.tier = tier;
      const auto report = Verify(verify);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_TRUE(report->differences.empty()) << ToString(report->differences[0]);
      EXPECT_GT(report->positions, 0);
      EXPECT_TRUE(LogitBytes(cut, "beta", tier, WeightMode::kAsIs) ==
                  LogitBytes(out(), "beta", tier, WeightMode::kAsIs));
    }
    // A code's lowest bit, of an expert: the bytes say so, and so do the logits alone.
    const std::string path = "domains/beta.safetensors";
    const std::string file = ReadBytes(cut / path);
    for (const TensorPlace& tensor : TensorsIn(file)) {
      if (tensor.dtype != DType::kU8) continue;
      WriteBytes(cut / path, file);
      FlipByte(cut / path, tensor.begin + 2);
      Resign(cut);
      const auto report = Verify(OptionsFor(cut, out()));
      ASSERT_TRUE(report.ok()) << report.status();
      ASSERT_EQ(report->differences.size(), 1u);
      EXPECT_EQ(report->differences[0].tensor, tensor.name);
      EXPECT_THAT(report->differences[0].what, HasSubstr("block 0 (byte 2) differs"));
    }
    WriteBytes(cut / path, file);
    Resign(cut);
    EXPECT_TRUE(Verify(OptionsFor(cut, out()))->differences.empty());
  }
}

TEST_F(QuantizeTest, ACutLosesTheTypesOfTensorsThatAreGone) {
  WriteModel(Shape());
  MustRun(DType::kQ8_0);
  auto config = nlohmann::ordered_json::parse(ReadBytes(out() / "config.json"));
  const std::string alpha = "model.layers.1.mlp.domains.alpha.experts.0.up_proj.weight";
  const std::string beta = "model.layers.1.mlp.domains.beta.experts.0.up_proj.weight";
  config["quantization_config"]["tensors"] = {{alpha, "Q8_0"}, {beta, "Q8_0"}, {"model.embed_tokens.weight", "Q8_0"}};
  WriteBytes(out() / "config.json", config.dump());
  Resign(out());
  ASSERT_TRUE(Cut(out(), {"beta"}, temp() / "cut").ok());
  const auto cut = nlohmann::json::parse(ReadBytes(temp() / "cut" / "config.json"));
  EXPECT_EQ(cut["quantization_config"]["tensors"],
            nlohmann::json({{beta, "Q8_0"}, {"model.embed_tokens.weight", "Q8_0"}}));
  const auto report = Verify(OptionsFor(temp() / "cut", out()));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->differences.empty()) << ToString(report->differences[0]);
}

TEST_F(QuantizeTest, InspectShowsTypesAndBytes) {
  WriteModel(Shape());
  const int parameters = (*Inspect(model()))["parameters"].get<int>();
  MustRun(DType::kQ4_0);
  const auto json = Inspect(out());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["parameters"], parameters);
  const Json beta = (*json)["parts"][2]["types"];
  EXPECT_EQ(beta["Q4_0"], 2 * 2 * 2 * 40 * (64 / 32 * 18));  // gate and up of two experts in two layers
  EXPECT_EQ(beta["BF16"], 2 * 2 * 64 * 40 * 2);              // down
  EXPECT_EQ(beta["I32"], 2 * 97 * 4);
  EXPECT_EQ((*json)["types"]["Q8_0"], 97 * (64 / 32 * 34));
  EXPECT_THAT(InspectTable(*json), HasSubstr("Q8_0 " + std::to_string(97 * 68) + " bytes"));
}

// ---- What is refused ----

TEST_F(QuantizeTest, QuantisedModelsAndGgufFilesAreNotQuantisedAgain) {
  WriteModel(Shape());
  ASSERT_TRUE(Run(DType::kQ8_0, temp() / "once").ok());
  fs::remove_all(model());
  fs::rename(temp() / "once", model());
  ExpectRefused(DType::kQ4_0, absl::StatusCode::kFailedPrecondition, "quantised already, to Q8_0");
  fs::remove_all(model());
  WriteBytes(model(), MakeTinyGguf().Bytes());
  ExpectRefused(DType::kQ8_0, absl::StatusCode::kFailedPrecondition, "is a GGUF file");
}

TEST_F(QuantizeTest, AModelWithoutWholeBlocksIsRefused) {
  TinyModelOptions options;
  options.hidden_size = options.intermediate_size = options.moe_intermediate_size = 48;
  options.num_heads = 3;
  WriteModel(options);
  ExpectRefused(DType::kQ8_0, absl::StatusCode::kFailedPrecondition, "no matrix has rows of a multiple of 32");
}

TEST_F(QuantizeTest, AWeightThatNoBlockHoldsIsNamed) {
  TinyModelOptions options = Shape();
  options.dtype = DType::kF32;
  const std::string name = "model.layers.1.mlp.domains.alpha.experts.2.gate_proj.weight";
  const auto with = [&](float value) {
    TinyModel tiny = MakeTinyModel(options);
    std::memcpy(tiny.Tensor(name).data.data() + 4 * (7 * 64 + 33), &value, 4);
    fs::remove_all(model());
    WriteTinyModel(tiny, model());
  };
  const std::string where = "domains/alpha.safetensors: tensor '" + name + "': row 7 has a weight ";
  for (float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    with(value);
    ExpectRefused(DType::kQ8_0, absl::StatusCode::kDataLoss, where + "that is not finite");
    ExpectRefused(DType::kQ4_0, absl::StatusCode::kDataLoss, where + "that is not finite");
  }
  with(-1e6f);
  ExpectRefused(DType::kQ4_0, absl::StatusCode::kDataLoss, where + "too large for a block of Q4_0");
  EXPECT_TRUE(Run(DType::kQ8_0).ok());
  fs::remove_all(out());
  with(1e7f);
  ExpectRefused(DType::kQ8_0, absl::StatusCode::kDataLoss, where + "too large for a block of Q8_0");
}

TEST_F(QuantizeTest, SourceThatIsNotWhatItsLockSaysIsRefused) {
  WriteModel(Shape());
  ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
  EXPECT_TRUE(Run(DType::kQ8_0, temp() / "control").ok());
  const std::string bytes = ReadBytes(model() / "domains/beta.safetensors");
  FlipByte(model() / "domains/beta.safetensors", bytes.size() - 1000);
  ExpectRefused(DType::kQ8_0, absl::StatusCode::kDataLoss, "domains/beta.safetensors");
}

TEST_F(QuantizeTest, TargetsThatAreThereOrInsideTheModelAreRefused) {
  WriteModel(Shape());
  const auto before = ReadTree(model());
  fs::create_directory(out());
  EXPECT_EQ(Run(DType::kQ8_0).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::is_empty(out()));
  EXPECT_EQ(Run(DType::kQ8_0, model() / "q8").status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status missing = Run(DType::kQ8_0, temp() / "no" / "out").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr((temp() / "no" / "out").string()));
  EXPECT_EQ(ReadTree(model()), before);
  fs::remove_all(model());
  fs::remove_all(out());
  ExpectRefused(DType::kQ8_0, absl::StatusCode::kNotFound, model().string());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// An embedding of 256 MiB, a hole on disk, and 48 MiB of room: the tool keeps no tensor in memory.
TEST_F(QuantizeTest, MemoryDoesNotGrowWithTheModel) {
  TinyModelOptions options = Shape();
  options.model_type = "llama";
  options.dtype = DType::kF32;
  options.with_index = false;
  constexpr int kVocab = 1 << 20;
  TinyModel tiny = MakeTinyModel(options);
  tiny.config["vocab_size"] = kVocab;
  auto& tensors = tiny.files[0].tensors;
  std::rotate(tensors.begin(), tensors.begin() + 1, tensors.end());  // the embedding last
  WriteTinyModel(tiny, model());
  auto header = SafetensorsHeader(tensors);
  auto& embedding = header["model.embed_tokens.weight"];
  const uint64_t bytes = uint64_t{kVocab} * 64 * 4;
  embedding["shape"] = {kVocab, 64};
  embedding["data_offsets"][1] = embedding["data_offsets"][0].get<uint64_t>() + bytes;
  tensors.back().data.clear();
  WriteBytes(model() / "model.safetensors", SafetensorsBytes(header.dump(), SafetensorsData(tensors)));
  fs::resize_file(model() / "model.safetensors", fs::file_size(model() / "model.safetensors") + bytes);

  const pid_t child = ::fork();
  if (child == 0) {
    std::ifstream statm("/proc/self/statm");
    uint64_t pages = 0;
    statm >> pages;
    const rlim_t limit_bytes = pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) + (48 << 20);
    const rlimit limit = {limit_bytes, limit_bytes};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(2);
    ::_exit(Run(DType::kQ8_0).ok() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_GT(fs::file_size(out() / "model.safetensors"), uint64_t{kVocab} * 68);
}
#endif

}  // namespace
}  // namespace scion::test
