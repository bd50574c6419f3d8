// An upcycled model has the bits of its dense parent in every domain, wherever the route leads.

#include "extract/upcycle.h"

#include <functional>
#include <memory>
#include <set>

#include "engine/base/sha256.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/text/tokenizer.h"
#include "extract/staged_directory.h"
#include "tests/extract/extract_fixture.h"
#include "tests/support/tiny_gguf.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The logits of a prompt, as bytes, without any code of extract/.
std::string LogitBytes(const fs::path& path, const std::string& domain) {
  ThreadPool pool(2);
  const auto checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return "unreadable";
  auto model = Model::Load(**checkpoint, {}, pool);
  auto cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 8);
  std::vector<int32_t> prompt;
  for (int i = 0; i < 97; ++i) prompt.push_back((i * 37 + 11) % (*model)->spec().vocab_size);
  std::string bytes;
  bool finite = true;
  const absl::Status status =
      RunPrompt(**model, *cache, *(*model)->spec().FindDomain(domain), prompt, [&](int, std::span<const float> logits) {
        for (const float logit : logits) finite = finite && std::isfinite(logit);
        bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size_bytes());
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(finite) << path;
  return bytes;
}

// Data of all tensors of a file, by name, by the small parser of the fixture.
std::map<std::string, std::string> TensorData(const fs::path& file) {
  const std::string bytes = ReadBytes(file);
  std::map<std::string, std::string> data;
  for (const TensorPlace& tensor : TensorsIn(bytes)) {
    data[tensor.name] = bytes.substr(tensor.begin, tensor.end - tensor.begin);
  }
  return data;
}

std::vector<int32_t> Int32s(const std::string& bytes) {
  std::vector<int32_t> values(bytes.size() / sizeof(int32_t));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Bytes of a GGUF file whose weights are finite and small, of every type of block. "down" of layer 1 is another type
// than that of layer 0.
TinyGguf SaneGguf() {
  TinyGguf file = MakeTinyGguf({.tokenizer = false});
  for (TinyGgufTensor& tensor : file.tensors) {
    struct Scales {
      uint32_t type;
      size_t block_bytes;
      std::vector<size_t> places;
    };
    static const Scales kScales[] = {{2, 18, {0}}, {3, 20, {0, 2}},   {6, 22, {0}},      {7, 24, {0, 2}},
                                     {8, 34, {0}}, {12, 144, {0, 2}}, {13, 176, {0, 2}}, {14, 210, {208}}};
    for (const Scales& scales : kScales) {
      if (scales.type != tensor.type) continue;
      for (size_t at = 0; at < tensor.data.size(); at += scales.block_bytes) {
        const uint16_t half = F32ToF16(tensor.type >= 12 ? 1e-4f : 1e-3f);
        for (const size_t place : scales.places) std::memcpy(&tensor.data[at + place], &half, sizeof(half));
      }
    }
    const auto fill = [&](size_t width, std::function<uint32_t(float)> bits) {
      for (size_t at = 0; at < tensor.data.size(); at += width) {
        const uint32_t value = bits(0.2f + 0.001f * static_cast<float>((at * 2654435761u) % 997));
        std::memcpy(&tensor.data[at], &value, width);
      }
    };
    if (tensor.type == 0) fill(4, [](float f) { return std::bit_cast<uint32_t>(f); });
    if (tensor.type == 1) fill(2, [](float f) { return uint32_t{F32ToF16(f)}; });
    if (tensor.type == 30) fill(2, [](float f) { return uint32_t{F32ToBf16(f)}; });
  }
  return file;
}

class UpcycleTest : public ::testing::Test {
 protected:
  fs::path temp() const { return temp_.path(); }
  fs::path dense() const { return temp() / "dense"; }
  fs::path gguf() const { return temp() / "dense.gguf"; }
  fs::path out() const { return temp() / "out"; }

  TinyModel WriteDense(TinyModelOptions options = {}) {
    options.model_type = "llama";
    const TinyModel model = MakeTinyModel(options);
    WriteTinyModel(model, dense());
    WriteBytes(dense() / "tokenizer.json", "{\"vocab\": {}}\n");
    return model;
  }

  UpcycleOptions Options() const {
    return {.dense = dense(),
            .out = out(),
            .domains = {"code", "law", "zh"},
            .num_experts = 2,
            .sparse_layers = 2,
            .histogram = std::nullopt,
            .seed = 7,
            .version = "test",
            .now = TestTime()};
  }

  void ExpectIdentical(const fs::path& model, const fs::path& parent) {
    const auto report = Verify(OptionsFor(model, parent));
    ASSERT_TRUE(report.ok()) << report.status();
    for (const Difference& difference : report->differences) ADD_FAILURE() << ToString(difference);
    EXPECT_GT(report->positions, 0);
    EXPECT_GT(report->tensors, 0);
    for (const auto& [domain, layers] : report->coverage) {
      for (const LayerCoverage& layer : layers) EXPECT_EQ(layer.visited, layer.experts) << domain;
    }
  }

  // Refused with this code and message, and nothing is left anywhere.
  void ExpectRefused(const UpcycleOptions& options, absl::StatusCode code, const std::string& message) {
    const auto result = Upcycle(options);
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(message));
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_FALSE(fs::exists(StagingPath(out())));
  }

 private:
  TempDir temp_;
};

// Every kind of floats, and blocks of every type in a directory.
std::vector<TinyModelOptions> DenseShapes() {
  std::vector<TinyModelOptions> shapes(3);
  shapes[0].dtype = DType::kBF16;
  shapes[1].dtype = DType::kF32;
  shapes[1].tie_word_embeddings = false;
  shapes[2].dtype = DType::kF16;
  for (const DType type : kBlockTypes) {
    TinyModelOptions blocks;
    blocks.blocks = type;
    blocks.hidden_size = blocks.intermediate_size = 256;
    shapes.push_back(blocks);
  }
  return shapes;
}

TEST_F(UpcycleTest, EveryExpertIsTheParentsFfnAndTheRestIsTheTrunk) {
  for (const TinyModelOptions& shape : DenseShapes()) {
    fs::remove_all(dense());
    fs::remove_all(out());
    WriteDense(shape);
    const auto result = Upcycle(Options());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->sparse_layers, ElementsAre(1, 2));
    std::map<std::string, std::string> parent = TensorData(dense() / "model.safetensors");
    int experts = 0;
    for (const std::string domain : {"code", "law", "zh"}) {
      std::map<std::string, std::string> group = TensorData(out() / "domains" / (domain + ".safetensors"));
      for (const int layer : {1, 2}) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
        for (const std::string expert : {"0", "1"}) {
          for (const std::string projection : {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}) {
            const auto it = group.find(prefix + "domains." + domain + ".experts." + expert + "." + projection);
            ASSERT_NE(it, group.end());
            EXPECT_TRUE(it->second == parent.at(prefix + projection)) << it->first;
            group.erase(it);
            ++experts;
          }
        }
        EXPECT_EQ(group.erase(prefix + "domains." + domain + ".route"), 1u);
      }
      EXPECT_TRUE(group.empty());
    }
    EXPECT_EQ(experts, 3 * 2 * 2 * 3);
    std::erase_if(parent, [](const auto& tensor) {
      return tensor.first.find("layers.1.mlp.") != std::string::npos ||
             tensor.first.find("layers.2.mlp.") != std::string::npos;
    });
    EXPECT_TRUE(TensorData(out() / "trunk.safetensors") == parent);
    EXPECT_EQ(ReadBytes(out() / "tokenizer.json"), ReadBytes(dense() / "tokenizer.json"));
    EXPECT_EQ(ReadBytes(out() / "generation_config.json"), ReadBytes(dense() / "generation_config.json"));
    ExpectIdentical(out(), dense());
  }
}

TEST_F(UpcycleTest, EveryDomainAndEverySliceHasTheLogitsOfTheParent) {
  TinyModelOptions blocks;
  blocks.blocks = DType::kQ4_0;
  for (const TinyModelOptions& shape : {TinyModelOptions(), blocks}) {
    fs::remove_all(dense());
    fs::remove_all(out());
    WriteDense(shape);
    ASSERT_TRUE(Upcycle(Options()).ok());
    const std::string expected = LogitBytes(dense(), "default");
    for (const std::string domain : {"code", "law", "zh"}) {
      EXPECT_TRUE(LogitBytes(out(), domain) == expected) << domain;
      const fs::path cut = temp() / ("cut_" + domain);
      fs::remove_all(cut);
      ASSERT_TRUE(Cut(out(), {domain}, cut).ok());
      EXPECT_TRUE(LogitBytes(cut, domain) == expected) << domain;
      ExpectIdentical(cut, dense());
    }
  }
}

TEST_F(UpcycleTest, ConfigKeepsTheParentsKeysAndTellsOfDomains) {
  auto expected = WriteDense().config;
  ASSERT_TRUE(Upcycle(Options()).ok());
  expected["model_type"] = "scion";
  expected["architectures"] = {"ScionForCausalLM"};
  expected["moe_intermediate_size"] = 48;
  expected["sparse_layers"] = {1, 2};
  expected["num_experts_per_tok"] = 1;
  expected["domains"] = nlohmann::json::array();
  for (const char* name : {"code", "law", "zh"}) expected["domains"].push_back({{"name", name}, {"num_experts", 2}});
  expected["default_domain"] = "code";
  expected["routes"] = {{"seed", 7}, {"balanced_by", "token_types"}};
  EXPECT_EQ(nlohmann::json::parse(ReadBytes(out() / "config.json")), nlohmann::json(expected));
  const auto lock = nlohmann::json::parse(ReadBytes(out() / "scion.lock.json"));
  EXPECT_EQ(lock["lineage"].size(), 1u);
  EXPECT_EQ(lock["lineage"][0]["verb"], "upcycle");
  EXPECT_EQ(lock["lineage"][0]["source"], "dense");
  EXPECT_EQ(lock["domains"]["law"]["file"], "domains/law.safetensors");
  auto files = ReadTree(out());
  files.erase("scion.lock.json");
  EXPECT_EQ(lock["files"].size(), files.size());
  for (const auto& [path, bytes] : files) EXPECT_EQ(lock["files"][path]["sha256"], Sha256Hex(bytes)) << path;
}

// Row i of a head of 16 in the engine's order is the file's row 2i, and in the second half 2(i - 8) + 1.
std::string Unpermuted(const std::string& data, size_t rows) {
  const size_t row_bytes = data.size() / rows;
  std::string result;
  for (size_t row = 0; row < rows; ++row) {
    const size_t head = row / 16, i = row % 16;
    result += data.substr((head * 16 + (i < 8 ? 2 * i : 2 * (i - 8) + 1)) * row_bytes, row_bytes);
  }
  return result;
}

TEST_F(UpcycleTest, BlocksOfGgufMoveWholeAndHeadsRowsGoBackToTheirOrder) {
  const TinyGguf file = SaneGguf();
  WriteBytes(gguf(), file.Bytes());
  UpcycleOptions options = Options();
  options.dense = gguf();
  options.sparse_layers = 1;
  const auto result = Upcycle(options);
  ASSERT_TRUE(result.ok()) << result.status();
  std::map<std::string, std::string> trunk = TensorData(out() / "trunk.safetensors");
  const std::map<std::string, std::string> group = TensorData(out() / "domains/law.safetensors");
  const auto data = [&](const std::string& name) { return TinyGguf(file).Tensor(name).data; };
  for (const std::string layer : {"0", "1"}) {
    const std::string from = "blk." + layer + ".", to = "model.layers." + layer + ".";
    EXPECT_TRUE(trunk[to + "self_attn.q_proj.weight"] == Unpermuted(data(from + "attn_q.weight"), 32)) << layer;
    EXPECT_TRUE(trunk[to + "self_attn.k_proj.weight"] == Unpermuted(data(from + "attn_k.weight"), 16)) << layer;
    EXPECT_TRUE(trunk[to + "self_attn.v_proj.weight"] == data(from + "attn_v.weight"));
    EXPECT_TRUE(trunk[to + "self_attn.o_proj.weight"] == data(from + "attn_output.weight"));
    EXPECT_TRUE(trunk[to + "input_layernorm.weight"] == data(from + "attn_norm.weight"));
  }
  EXPECT_TRUE(trunk["model.embed_tokens.weight"] == data("token_embd.weight"));
  EXPECT_TRUE(trunk["lm_head.weight"] == data("output.weight"));
  EXPECT_TRUE(trunk["model.layers.0.mlp.down_proj.weight"] == data("blk.0.ffn_down.weight"));
  EXPECT_FALSE(trunk.contains("model.layers.1.mlp.down_proj.weight"));
  for (const std::string expert : {"0", "1"}) {
    for (const std::string projection : {"gate", "up", "down"}) {
      EXPECT_TRUE(group.at("model.layers.1.mlp.domains.law.experts." + expert + "." + projection + "_proj.weight") ==
                  data("blk.1.ffn_" + projection + ".weight"));
    }
  }
  const std::string expected = LogitBytes(gguf(), "default");
  for (const std::string domain : {"code", "law", "zh"}) EXPECT_TRUE(LogitBytes(out(), domain) == expected) << domain;
  ExpectIdentical(out(), gguf());
  const auto config = nlohmann::json::parse(ReadBytes(out() / "config.json"));
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["rope_theta"], 500000.0);
  EXPECT_EQ(config["head_dim"], 16);
  EXPECT_EQ(config["quantization_config"]["tensors"]["lm_head.weight"], "Q5_K");
  EXPECT_THAT(Names(out()), ElementsAre("config.json", "domains", "model.safetensors.index.json", "scion.lock.json",
                                        "trunk.safetensors"));
}

// A GGUF file that the reference's converter made, with a tokenizer.
fs::path GoldenGguf() { return fs::path(SCION_SOURCE_DIR) / "tests/golden/gguf/llama.gguf"; }

TEST_F(UpcycleTest, TokenizerOfGgufBecomesTheFilesOfADirectory) {
  UpcycleOptions options = Options();
  options.dense = GoldenGguf();
  options.sparse_layers = 1;
  ASSERT_TRUE(Upcycle(options).ok());
  const auto expected = Tokenizer::FromGguf(*(*Checkpoint::Open(GoldenGguf()))->vocabulary());
  const auto tokenizer = Tokenizer::Load(out());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const std::string text : {"hello world", "a<|x|> 1 2\n\n3", "\u00e9\u4e2d"}) {
    std::vector<int32_t> ids, expected_ids;
    (*tokenizer)->Encode(text, {}, ids);
    (*expected)->Encode(text, {}, expected_ids);
    EXPECT_EQ(ids, expected_ids) << text;
  }
  EXPECT_TRUE(LogitBytes(out(), "zh") == LogitBytes(GoldenGguf(), "default"));
  ExpectIdentical(out(), GoldenGguf());
  WriteBytes(out() / "tokenizer.json", ReadBytes(out() / "tokenizer.json") + " ");
  Resign(out());
  const auto report = Verify(OptionsFor(out(), GoldenGguf()));
  ASSERT_EQ(report->differences.size(), 1u);
  EXPECT_EQ(report->differences[0].file, "tokenizer.json");
}

// Sums of `mass` over the tokens of each expert.
std::vector<double> SharesOf(const std::vector<int32_t>& route, const std::vector<double>& mass, int num_experts) {
  std::vector<double> shares(static_cast<size_t>(num_experts));
  double total = 0;
  for (size_t t = 0; t < route.size(); ++t) {
    shares.at(static_cast<size_t>(route[t])) += mass[t];
    total += mass[t];
  }
  for (double& share : shares) share /= total;
  return shares;
}

TEST_F(UpcycleTest, RoutesAreBalancedByTokenTypesWithoutAText) {
  WriteDense();
  UpcycleOptions options = Options();
  options.num_experts = 4;
  ASSERT_TRUE(Upcycle(options).ok());
  std::set<std::vector<int32_t>> tables;
  for (const std::string domain : {"code", "law", "zh"}) {
    for (const auto& [name, data] : TensorData(out() / "domains" / (domain + ".safetensors"))) {
      if (!name.ends_with(".route")) continue;
      const std::vector<int32_t> route = Int32s(data);
      ASSERT_EQ(route.size(), 97u);
      for (const double share : SharesOf(route, std::vector<double>(97, 1.0), 4)) {
        EXPECT_NEAR(share * 97, 24.5, 0.5001);  // 24 or 25 tokens
      }
      tables.insert(route);
    }
  }
  EXPECT_EQ(tables.size(), 6u) << "each layer and domain has a table of its own";
}

TEST_F(UpcycleTest, RoutesAreBalancedByTheTextsTokens) {
  UpcycleOptions options = Options();
  options.dense = GoldenGguf();
  options.num_experts = 4;
  options.sparse_layers = 1;
  options.histogram = temp() / "text";
  std::string text;
  for (int i = 0; i < 3000; ++i) {
    text += i % 6 == 0 ? "hello " : i % 7 == 0 ? "world\n" : std::string(1, static_cast<char>('a' + i * i % 26));
  }
  WriteBytes(*options.histogram, text);
  const auto result = Upcycle(options);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto checkpoint = Checkpoint::Open(GoldenGguf());
  std::vector<int32_t> ids;
  (*Tokenizer::FromGguf(*(*checkpoint)->vocabulary()))
      ->Encode(text, {.parse_special = false, .add_special = false}, ids);
  std::vector<double> mass(static_cast<size_t>((*checkpoint)->spec().vocab_size));
  for (const int32_t id : ids) mass[static_cast<size_t>(id)] += 1.0 / static_cast<double>(ids.size());
  const double heaviest = *std::max_element(mass.begin(), mass.end());
  ASSERT_LT(heaviest, 0.2);
  double smallest = 1, largest = 0;
  int tables = 0;
  for (const std::string domain : {"code", "law", "zh"}) {
    for (const auto& [name, data] : TensorData(out() / "domains" / (domain + ".safetensors"))) {
      if (!name.ends_with(".route")) continue;
      ++tables;
      for (const double share : SharesOf(Int32s(data), mass, 4)) {
        EXPECT_NEAR(share, 0.25, 0.02) << name;
        smallest = std::min(smallest, share);
        largest = std::max(largest, share);
      }
    }
  }
  EXPECT_EQ(tables, 3);
  EXPECT_NEAR(result->smallest_share, smallest, 1e-9);
  EXPECT_NEAR(result->largest_share, largest, 1e-9);
  // By token types alone the text's tokens would not be balanced: the bound above is one that can be missed.
  fs::remove_all(out());
  options.histogram.reset();
  ASSERT_TRUE(Upcycle(options).ok());
  double worst = 0;
  for (const auto& [name, data] : TensorData(out() / "domains/code.safetensors")) {
    if (!name.ends_with(".route")) continue;
    for (const double share : SharesOf(Int32s(data), mass, 4)) worst = std::max(worst, std::abs(share - 0.25));
  }
  EXPECT_GT(worst, 0.03);
}

TEST_F(UpcycleTest, TheSeedDecidesTheRoutesAndNothingElse) {
  WriteDense();
  const auto upcycled = [&](uint64_t seed) {
    fs::remove_all(out());
    UpcycleOptions options = Options();
    options.seed = seed;
    EXPECT_TRUE(Upcycle(options).ok());
    return ReadTree(out());
  };
  const auto first = upcycled(1);
  EXPECT_EQ(upcycled(1), first);
  const auto other = upcycled(2);
  EXPECT_EQ(other.at("trunk.safetensors"), first.at("trunk.safetensors"));
  EXPECT_NE(other.at("domains/zh.safetensors"), first.at("domains/zh.safetensors"));
}

TEST_F(UpcycleTest, VerifyNamesWhatIsNotTheParents) {
  WriteDense();
  ASSERT_TRUE(Upcycle(Options()).ok());
  const fs::path file = out() / "domains/law.safetensors";
  const std::string sound = ReadBytes(file);
  for (const TensorPlace& tensor : TensorsIn(sound)) {
    if (tensor.name.find(".experts.") == std::string::npos) continue;
    std::string damaged = sound;
    FlipSignOfLargest(damaged, tensor);
    WriteBytes(file, damaged);
    Resign(out());
    const auto report = Verify(OptionsFor(out(), dense()));
    ASSERT_EQ(report->differences.size(), 1u);
    EXPECT_EQ(report->differences[0].tensor, tensor.name);
    VerifyOptions logits_only = OptionsFor(out(), dense());
    logits_only.compare_bytes = false;
    EXPECT_THAT(ToString(Verify(logits_only)->differences.at(0)), HasSubstr("domain 'law'")) << tensor.name;
  }
  WriteBytes(file, sound);
  Resign(out());
  ExpectIdentical(out(), dense());
  auto config = nlohmann::json::parse(ReadBytes(out() / "config.json"));
  config["rope_theta"] = 5000.0;
  config.erase("rope_parameters");
  WriteBytes(out() / "config.json", config.dump());
  Resign(out());
  EXPECT_THAT(ToString(Verify(OptionsFor(out(), dense()))->differences.at(0)), HasSubstr("config.json"));
}

TEST_F(UpcycleTest, ARouteEntryOutsideTheGroupIsFound) {
  WriteDense();
  ASSERT_TRUE(Upcycle(Options()).ok());
  const fs::path file = out() / "domains/zh.safetensors";
  std::string bytes = ReadBytes(file);
  for (const TensorPlace& tensor : TensorsIn(bytes)) {
    if (tensor.name == "model.layers.2.mlp.domains.zh.route") bytes[tensor.begin + 4 * 13] = 2;
  }
  WriteBytes(file, bytes);
  const auto report = Verify(OptionsFor(out(), dense()));
  ASSERT_TRUE(report.ok());
  std::string all;
  for (const Difference& difference : report->differences) all += ToString(difference) + "\n";
  EXPECT_THAT(all, HasSubstr("token 13: expert 2 is outside [0, 2)"));
}

TEST_F(UpcycleTest, WrongNamesAndNumbersAreRefused) {
  WriteDense();
  const auto refused = [&](const std::function<void(UpcycleOptions&)>& edit, const std::string& message) {
    UpcycleOptions options = Options();
    edit(options);
    ExpectRefused(options, absl::StatusCode::kInvalidArgument, message);
  };
  refused([](UpcycleOptions& o) { o.domains = {"code", "../law"}; }, "'../law'");
  refused([](UpcycleOptions& o) { o.domains = {"auto"}; }, "'auto'");
  refused([](UpcycleOptions& o) { o.domains = {""}; }, "''");
  refused([](UpcycleOptions& o) { o.domains = {"a", "a"}; }, "twice");
  refused([](UpcycleOptions& o) { o.domains = {}; }, "no domain");
  refused([](UpcycleOptions& o) { o.num_experts = 0; }, "0 experts, outside [1, 4096]");
  refused([](UpcycleOptions& o) { o.num_experts = 98; }, "98 experts for a vocabulary of 97");
  refused([](UpcycleOptions& o) { o.num_experts = -1; }, "-1 experts");
  refused([](UpcycleOptions& o) { o.sparse_layers = 0; }, "0 sparse layers");
  refused([](UpcycleOptions& o) { o.sparse_layers = 4; }, "4 sparse layers, but");
  refused([](UpcycleOptions& o) { o.out = o.dense / "inside"; }, "inside the model");
  // The control: the most that is allowed.
  UpcycleOptions most = Options();
  most.num_experts = 97;
  most.sparse_layers = 3;
  ASSERT_TRUE(Upcycle(most).ok());
  ExpectIdentical(out(), dense());
  EXPECT_EQ(Upcycle(most).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(UpcycleTest, OtherModelsAreRefused) {
  UpcycleOptions options = Options();
  ExpectRefused(options, absl::StatusCode::kNotFound, dense().string());
  WriteTinyModel(MakeTinyModel(), dense());
  ExpectRefused(options, absl::StatusCode::kFailedPrecondition, "has experts already");
  options.dense = gguf();
  WriteBytes(gguf(), MakeTinyGguf({.num_experts = 4}).Bytes());
  ExpectRefused(options, absl::StatusCode::kFailedPrecondition, "has experts already");
  TinyGguf other = MakeTinyGguf();
  other.Set("general.architecture", GgufText("gemma"));
  WriteBytes(gguf(), other.Bytes());
  ExpectRefused(options, absl::StatusCode::kUnimplemented, "'gemma'");
  // Its vocabulary lacks the tokens that its merges join.
  WriteBytes(gguf(), MakeTinyGguf().Bytes());
  options.sparse_layers = 1;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument, "merge 0: 'a' is not a token");
}

TEST_F(UpcycleTest, TextsWithoutUseAreRefused) {
  UpcycleOptions options = Options();
  options.dense = GoldenGguf();
  options.sparse_layers = 1;
  options.histogram = temp() / "text";
  ExpectRefused(options, absl::StatusCode::kNotFound, "text");
  WriteBytes(*options.histogram, "");
  ExpectRefused(options, absl::StatusCode::kInvalidArgument, "no token of the vocabulary");
  WriteBytes(*options.histogram, "hello");
  EXPECT_TRUE(Upcycle(options).ok());
}

TEST_F(UpcycleTest, SourceThatIsNotWhatItsLockSaysIsRefused) {
  WriteDense();
  Resign(dense());
  ASSERT_TRUE(Upcycle(Options()).ok());
  fs::remove_all(out());
  FlipByte(dense() / "model.safetensors", ReadBytes(dense() / "model.safetensors").size() - 100);
  ExpectRefused(Options(), absl::StatusCode::kDataLoss, "model.safetensors");
}

}  // namespace
}  // namespace scion::test
