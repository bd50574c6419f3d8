// What a fold is: exact where it can be, a plain Llama directory, the same bytes every time; and what is refused.

#include "extract/densify.h"

#include <memory>

#include "engine/model/model.h"
#include "extract/compare_logits.h"
#include "extract/inspect.h"
#include "extract/verify_fold.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const fs::path kDemo = fs::path(SCION_SOURCE_DIR) / "deploy" / "demo";

class DensifyTest : public ::testing::Test {
 protected:
  fs::path model() const { return temp_.path() / "model"; }
  fs::path out() const { return temp_.path() / "out"; }

  void WriteModel(const TinyModelOptions& options) { WriteTinyModel(MakeTinyModel(options), model()); }
  // A tiny model that speaks the demo's tokens.
  void WriteSpeakingModel(TinyModelOptions options) {
    options.vocab_size = 8192;
    WriteModel(options);
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::copy_file(kDemo / name, model() / name);
  }
  DensifyOptions Options(const std::string& domain, int width = 1) const {
    DensifyOptions options;
    options.model = model();
    options.domain = domain;
    options.out = out();
    options.width = width;
    options.tier = kernels::SupportedTiers().back();
    options.num_threads = 2;
    options.version = "test";
    options.now = TestTime();
    return options;
  }

  static std::vector<std::vector<int32_t>> Prompts(int vocab_size) {
    std::vector<std::vector<int32_t>> prompts(3);
    uint32_t state = 5;
    for (auto& prompt : prompts) {
      for (int i = 0; i < 60; ++i) {
        state = state * 1664525u + 1013904223u;
        prompt.push_back(static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(vocab_size)));
      }
    }
    return prompts;
  }

  // Logits of all prompts, in order.
  static std::vector<float> LogitsOf(const fs::path& directory, const std::string& domain, kernels::Tier tier) {
    const auto checkpoint = Checkpoint::Open(directory);
    if (!checkpoint.ok()) ADD_FAILURE() << checkpoint.status();
    ThreadPool pool(2);
    ModelOptions options;
    options.tier = tier;
    options.kv_type = kernels::KvType::kF32;  // no rounding that magnifies a last bit
    const auto loaded = Model::Load(**checkpoint, options, pool).value();
    KvCache cache = MakeKvCache(*loaded, 64).value();
    std::vector<float> all;
    for (const auto& prompt : Prompts(loaded->spec().vocab_size)) {
      EXPECT_TRUE(
          RunPrompt(*loaded, cache, loaded->spec().FindDomain(domain).value_or(0), prompt,
                    [&](int, std::span<const float> logits) { all.insert(all.end(), logits.begin(), logits.end()); })
              .ok());
    }
    return all;
  }

  TempDir temp_;
};

TEST_F(DensifyTest, OneExpertPerLayerFoldsBitForBit) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    fs::remove_all(model());
    fs::remove_all(out());
    // Experts narrower than the dense FFNs, so that the fold's are padded.
    WriteModel(
        {.intermediate_size = 80, .moe_intermediate_size = 40, .domains = {{"alpha", 1}, {"beta", 2}}, .dtype = dtype});
    const auto result = Densify(Options("alpha"));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->is_exact);
    EXPECT_FALSE(result->has_channels);
    EXPECT_EQ(result->intermediate_size, 80);
    for (const kernels::Tier tier : kernels::SupportedTiers()) {
      EXPECT_EQ(LogitsOf(out(), "default", tier), LogitsOf(model(), "alpha", tier)) << kernels::TierName(tier);
    }
  }
}

// Both slots lead to the one expert; the route's weights go into the down projection.
TEST_F(DensifyTest, RouteWeightsAreFoldedIntoTheDownProjection) {
  WriteModel({.num_experts_per_tok = 2, .route_weights = true, .domains = {{"alpha", 1}}, .dtype = DType::kF32});
  const auto result = Densify(Options("alpha"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->is_exact);
  const kernels::Tier tier = kernels::SupportedTiers().back();
  const std::vector<float> fold = LogitsOf(out(), "default", tier), source = LogitsOf(model(), "alpha", tier);
  ASSERT_EQ(fold.size(), source.size());
  for (size_t i = 0; i < fold.size(); ++i) ASSERT_NEAR(fold[i], source[i], 1e-3f);
}

TEST_F(DensifyTest, VerifyProvesAFoldOfOneExpertAndFindsAFlippedWeight) {
  WriteModel({.domains = {{"alpha", 1}, {"beta", 2}}});
  ASSERT_TRUE(Densify(Options("alpha")).ok());
  ASSERT_TRUE(IsFold(out()));
  EXPECT_FALSE(IsFold(model()));
  const VerifyFoldOptions options{.fold = out(), .model = model(), .tier = kernels::SupportedTiers().back()};
  const auto intact = VerifyFold(options);
  ASSERT_TRUE(intact.ok()) << intact.status();
  EXPECT_THAT(intact->differences, IsEmpty());
  EXPECT_GT(intact->positions, 100);

  const fs::path file = out() / "model.safetensors";
  const std::string bytes = ReadBytes(file);
  for (const TensorPlace& place : TensorsIn(bytes)) {
    if (place.name != "model.layers.2.mlp.down_proj.weight") continue;
    std::string flipped = bytes;
    FlipSignOfLargest(flipped, place);
    WriteBytes(file, flipped);
  }
  const auto damaged = VerifyFold(options);
  ASSERT_TRUE(damaged.ok()) << damaged.status();
  ASSERT_THAT(damaged->differences, ::testing::Not(IsEmpty()));  // against its lock
  EXPECT_EQ(damaged->positions, 0);
  ASSERT_NO_FATAL_FAILURE(Resign(out()));
  ASSERT_TRUE(IsFold(out()));
  const auto resigned = VerifyFold(options);  // the hashes are right: it is up to the logits
  ASSERT_TRUE(resigned.ok()) << resigned.status();
  EXPECT_EQ(resigned->differences.size(), 1u);
  EXPECT_GT(resigned->positions, 100);
}

TEST_F(DensifyTest, VerifyMeasuresAnyOtherFoldOnAText) {
  WriteSpeakingModel({.hidden_size = 96, .domains = {{"alpha", 2}}});
  ASSERT_TRUE(Densify(Options("alpha")).ok());
  VerifyFoldOptions options{.fold = out(), .model = model(), .tier = kernels::SupportedTiers().back()};
  EXPECT_THAT(VerifyFold(options).status().message(), HasSubstr("--eval names one"));
  options.eval = temp_.path() / "text";
  WriteBytes(options.eval, ReadBytes(kDemo / "eval" / "cpp.jsonl").substr(0, 4000));
  options.max_divergence = 100;
  const auto measured = VerifyFold(options);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_THAT(measured->differences, IsEmpty());
  ASSERT_TRUE(measured->comparison.has_value());
  EXPECT_GT(measured->comparison->kl_divergence, 0);
  options.max_divergence = 0.5 * measured->comparison->kl_divergence;
  EXPECT_EQ(VerifyFold(options)->differences.size(), 1u);
}

TEST_F(DensifyTest, WidePaddingOfTheTrunkChangesNoBit) {
  WriteModel({.intermediate_size = 40, .moe_intermediate_size = 136, .domains = {{"alpha", 1}}});
  ASSERT_TRUE(Densify(Options("alpha")).ok());
  for (const kernels::Tier tier : kernels::SupportedTiers()) {
    EXPECT_EQ(LogitsOf(out(), "default", tier), LogitsOf(model(), "alpha", tier)) << kernels::TierName(tier);
  }
}

TEST_F(DensifyTest, ExpertsThatArePermutationsFoldExactlyByAverage) {
  TinyModel tiny = MakeTinyModel({.domains = {{"alpha", 3}}});
  for (const int layer : {1, 2}) {
    const auto tensor = [&](int e, const char* projection) -> std::string& {
      return tiny
          .Tensor(
              absl::StrCat("model.layers.", layer, ".mlp.domains.alpha.experts.", e, ".", projection, "_proj.weight"))
          .data;
    };
    // Neuron j of expert e is neuron (j + 7 e) mod 40 of expert 0.
    for (const int e : {1, 2}) {
      for (size_t j = 0; j < 40; ++j) {
        const size_t from = (j + 7 * static_cast<size_t>(e)) % 40;
        for (const char* projection : {"gate", "up"}) {
          tensor(e, projection).replace(j * 64, 64, tensor(0, projection).substr(from * 64, 64));
        }
        for (size_t k = 0; k < 32; ++k) {
          tensor(e, "down").replace((k * 40 + j) * 2, 2, tensor(0, "down").substr((k * 40 + from) * 2, 2));
        }
      }
    }
  }
  WriteTinyModel(tiny, model());
  DensifyOptions options = Options("alpha");
  options.method = FoldMethod::kAverage;
  ASSERT_TRUE(Densify(options).ok());
  const std::vector<float> fold = LogitsOf(out(), "default", options.tier);
  const std::vector<float> source = LogitsOf(model(), "alpha", options.tier);
  // Not bit for bit: the experts sum their neurons in another order.
  ASSERT_EQ(fold.size(), source.size());
  for (size_t i = 0; i < fold.size(); ++i) ASSERT_NEAR(fold[i], source[i], 2e-2f);
  const std::string file = ReadBytes(out() / "model.safetensors");
  for (const TensorPlace& place : TensorsIn(file)) {
    if (place.name != "model.layers.1.mlp.gate_proj.weight") continue;
    EXPECT_EQ(file.substr(place.begin, 40 * 64),
              tiny.Tensor("model.layers.1.mlp.domains.alpha.experts.0.gate_proj.weight").data);
  }
}

// Expert 1 has half of expert 0's gate, and 12 of 97 tokens.
TEST_F(DensifyTest, AverageCountsExpertsAlikeWeightedByTheirTokens) {
  TinyModel tiny = MakeTinyModel({.domains = {{"alpha", 2}}, .dtype = DType::kF32});
  const std::string p = "model.layers.1.mlp.domains.alpha.";
  std::vector<float> gate(40 * 32);
  std::string& first = tiny.Tensor(p + "experts.0.gate_proj.weight").data;
  ASSERT_EQ(first.size(), gate.size() * sizeof(float));
  std::memcpy(gate.data(), first.data(), first.size());
  std::vector<float> half = gate;
  for (float& v : half) v *= 0.5f;
  std::memcpy(tiny.Tensor(p + "experts.1.gate_proj.weight").data.data(), half.data(), first.size());
  for (const char* rest : {"up_proj.weight", "down_proj.weight"}) {
    tiny.Tensor(absl::StrCat(p, "experts.1.", rest)).data = tiny.Tensor(absl::StrCat(p, "experts.0.", rest)).data;
  }
  std::string& route = tiny.Tensor(p + "route").data;
  const size_t tokens = route.size() / sizeof(int32_t);
  ASSERT_EQ(tokens, 97u);
  for (size_t id = 0; id < tokens; ++id) {
    const int32_t expert = id < 12 ? 1 : 0;
    std::memcpy(&route[id * sizeof(expert)], &expert, sizeof(expert));
  }
  WriteTinyModel(tiny, model());
  for (const auto& [method, part] :
       {std::pair{FoldMethod::kAverage, 0.75f}, {FoldMethod::kWeighted, 1 - 0.5f * 12 / 97}}) {
    fs::remove_all(out());
    DensifyOptions options = Options("alpha");
    options.method = method;
    ASSERT_TRUE(Densify(options).ok());
    const std::string file = ReadBytes(out() / "model.safetensors");
    for (const TensorPlace& place : TensorsIn(file)) {
      if (place.name != "model.layers.1.mlp.gate_proj.weight") continue;
      std::vector<float> folded(gate.size());
      std::memcpy(folded.data(), &file[place.begin], first.size());
      for (size_t i = 0; i < gate.size(); ++i) ASSERT_NEAR(folded[i], part * gate[i], 1e-6f) << part;
    }
  }
}

TEST_F(DensifyTest, AllExpertsKeptWholeGiveTheSliceAgain) {
  WriteModel({.hidden_size = 96, .domains = {{"alpha", 3}, {"beta", 2}}, .dtype = DType::kF32});
  for (const bool channels : {true, false}) {
    fs::remove_all(out());
    DensifyOptions options = Options("alpha", 3);
    options.route_channels = channels;
    const auto result = Densify(options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->is_exact, channels);
    EXPECT_EQ(result->hidden_size, channels ? 104 : 96);
    EXPECT_EQ(result->intermediate_size, 120);
    // What a norm adds to the mean square is as much of it as in the source, whose mean runs over 96 units.
    const double eps = nlohmann::json::parse(ReadBytes(model() / "config.json"))["rms_norm_eps"];
    EXPECT_NEAR(nlohmann::json::parse(ReadBytes(out() / "config.json"))["rms_norm_eps"].get<double>(),
                channels ? eps * 96 / 104 : eps, 1e-9 * eps);
    const std::vector<float> fold = LogitsOf(out(), "default", options.tier);
    const std::vector<float> source = LogitsOf(model(), "alpha", options.tier);
    ASSERT_EQ(fold.size(), source.size());
    float worst = 0;
    for (size_t i = 0; i < fold.size(); ++i) worst = std::max(worst, std::abs(fold[i] - source[i]));
    if (channels) {
      EXPECT_LT(worst, 2e-3f);
    } else {
      EXPECT_GT(worst, 2e-2f);  // the control: without channels nothing tells the experts apart
    }
  }
}

TEST_F(DensifyTest, TheResultIsAPlainLlamaDirectory) {
  WriteModel({.domains = {{"alpha", 1}, {"beta", 2}}, .tie_word_embeddings = false, .with_lock = true});
  ASSERT_TRUE(Densify(Options("alpha")).ok());
  const auto config = nlohmann::json::parse(ReadBytes(out() / "config.json"));
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["architectures"], nlohmann::json({"LlamaForCausalLM"}));
  for (const char* key :
       {"domains", "sparse_layers", "moe_intermediate_size", "num_experts_per_tok", "default_domain"}) {
    EXPECT_FALSE(config.contains(key)) << key;
  }
  std::vector<std::string> names;
  for (const TensorPlace& place : TensorsIn(ReadBytes(out() / "model.safetensors"))) names.push_back(place.name);
  std::vector<std::string> expected = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"};
  for (int l = 0; l < 3; ++l) {
    for (const char* rest :
         {"input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
          "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"}) {
      expected.push_back(absl::StrCat("model.layers.", l, ".", rest, ".weight"));
    }
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAreArray(expected));
  const auto lock = nlohmann::json::parse(ReadBytes(out() / "scion.lock.json"));
  EXPECT_EQ(lock["lineage"].back()["verb"], "densify");
  EXPECT_EQ(lock["lineage"].back()["domains"], nlohmann::json({"alpha"}));
  EXPECT_THAT(*CheckHashes(out(), nullptr), IsEmpty());
}

TEST_F(DensifyTest, FittingBettersAnAverageAndDependsOnNoThreads) {
  WriteSpeakingModel({.hidden_size = 96, .domains = {{"alpha", 2}}});
  DensifyOptions options = Options("alpha");
  options.calibration = kDemo / "eval" / "cpp.jsonl";
  options.epochs = 6;
  std::map<FoldMethod, double> divergence;
  for (const FoldMethod method : {FoldMethod::kAverage, FoldMethod::kLsq}) {
    fs::remove_all(out());
    options.method = method;
    const auto result = Densify(options);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->comparison.has_value());
    EXPECT_GT(result->comparison->scored_tokens, 1000);
    divergence[method] = result->comparison->kl_divergence;
  }
  EXPECT_LT(divergence[FoldMethod::kLsq], 0.9 * divergence[FoldMethod::kAverage]);
  EXPECT_GT(divergence[FoldMethod::kLsq], 0);
  const auto first = ReadTree(out());
  for (const int threads : {1, 3}) {
    fs::remove_all(out());
    options.num_threads = threads;
    ASSERT_TRUE(Densify(options).ok());
    EXPECT_EQ(ReadTree(out()), first) << threads;
  }
}

TEST_F(DensifyTest, WhatCannotBeIsRefusedAndLeavesNothing) {
  WriteSpeakingModel({.domains = {{"alpha", 3}, {"beta", 2}}});
  const auto refusal = [&](const DensifyOptions& options) {
    const auto before = Names(temp_.path());
    const auto result = Densify(options);
    EXPECT_EQ(Names(temp_.path()), before);
    return result.ok() ? std::string("accepted") : std::string(result.status().message());
  };
  for (const int width : {-1, 0, 4}) EXPECT_THAT(refusal(Options("alpha", width)), HasSubstr("1 to 3 are possible"));
  EXPECT_THAT(refusal(Options("gamma")), HasSubstr("no domain 'gamma'; the model has: alpha, beta"));
  EXPECT_THAT(refusal(Options("../alpha")), HasSubstr("no domain"));
  DensifyOptions options = Options("alpha");
  options.method = FoldMethod::kLsq;
  EXPECT_THAT(refusal(options), HasSubstr("needs a calibration text"));
  options.calibration = temp_.path() / "text";
  EXPECT_THAT(refusal(options), HasSubstr("text"));
  WriteBytes(options.calibration, "");
  EXPECT_THAT(refusal(options), HasSubstr("is empty"));
  WriteBytes(options.calibration, std::string(100, '\0'));
  EXPECT_THAT(refusal(options), HasSubstr("is not text"));
  WriteBytes(options.calibration, "Too short a text.");
  EXPECT_THAT(refusal(options), HasSubstr("too few to calibrate on"));
  options = Options("alpha");
  options.out = model() / "inside";
  EXPECT_THAT(refusal(options), HasSubstr("lies inside the model"));
  fs::create_directory(out());
  EXPECT_THAT(refusal(Options("alpha")), HasSubstr("out"));
  EXPECT_THAT(Names(out()), IsEmpty());
}

TEST_F(DensifyTest, ModelsThatLlamaCannotExpressAreRefusedByName) {
  WriteModel({.model_type = "llama", .domains = {}});
  EXPECT_THAT(Densify(Options("default")).status().message(), HasSubstr("dense already"));
  DensifyOptions options = Options("default");
  options.model = fs::path(SCION_SOURCE_DIR) / "tests/golden/models/qwen3_moe";
  EXPECT_THAT(Densify(options).status().message(), HasSubstr("chosen by a gate"));
  fs::remove_all(model());
  WriteModel({.hidden_size = 64, .intermediate_size = 64, .moe_intermediate_size = 64, .blocks = DType::kQ8_0});
  EXPECT_THAT(Densify(Options("alpha")).status().message(), HasSubstr("quantised"));
  EXPECT_FALSE(fs::exists(out()));
}

}  // namespace
}  // namespace scion::test
