// Directories of Qwen3-MoE and Mixtral: what config.json says of the layers, what is refused and by which name. That
// the logits are right is reference_test's subject.
#include "engine/model/gate_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using test::ReadBytes;
using test::WriteBytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using OrderedJson = nlohmann::ordered_json;

const fs::path kModels = fs::path(SCION_SOURCE_DIR) / "tests/golden/models";

OrderedJson ConfigOf(const std::string& model) {
  return OrderedJson::parse(ReadBytes(kModels / model / "config.json"));
}

ModelSpec MustParse(const OrderedJson& config) {
  const absl::StatusOr<ModelSpec> spec = ParseModelSpec(config.dump(), "");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : ModelSpec{};
}

TEST(GateConfigTest, LayersAreWhatQwen3MoesConfigSays) {
  const ModelSpec spec = MustParse(ConfigOf("qwen3_moe"));
  EXPECT_THAT(spec.SparseLayers(), ElementsAre(0, 2));
  EXPECT_FALSE(spec.HasDomainFiles());
  ASSERT_EQ(spec.domains.size(), 1u);
  EXPECT_EQ(spec.domains[0].name, "default");
  EXPECT_EQ(spec.domains[0].num_experts, 8);
  for (const LayerSpec& layer : spec.layers) EXPECT_TRUE(layer.attention.qk_norm);
  EXPECT_EQ(spec.layers[0].attention.rope_theta, 1e6f);
  EXPECT_EQ(spec.layers[1].ffn.intermediate_size, 80);
  const FfnSpec& sparse = spec.layers[2].ffn;
  EXPECT_EQ(sparse.router, RouterKind::kGate);
  EXPECT_EQ(sparse.intermediate_size, 32);
  EXPECT_EQ(sparse.num_experts_per_tok, 3);
  EXPECT_TRUE(sparse.norm_topk_prob);
  EXPECT_THAT(MustParse(ConfigOf("qwen3_moe_step")).SparseLayers(), ElementsAre(1, 3));
}

TEST(GateConfigTest, KeysThatQwen3MoeLeavesOutHaveTransformersDefaults) {
  OrderedJson config = ConfigOf("qwen3_moe");
  for (const char* key : {"norm_topk_prob", "mlp_only_layers", "decoder_sparse_step", "rope_parameters"})
    config.erase(key);
  config["num_experts"] = config["num_local_experts"];  // as Transformers 4 wrote it
  config.erase("num_local_experts");
  config["sliding_window"] = 4096;  // not used without use_sliding_window
  const ModelSpec spec = MustParse(config);
  EXPECT_THAT(spec.SparseLayers(), ElementsAre(0, 1, 2));
  EXPECT_FALSE(spec.layers[0].ffn.norm_topk_prob);
  EXPECT_EQ(spec.domains[0].num_experts, 8);
  EXPECT_EQ(spec.layers[0].attention.rope_theta, 1e4f);
}

TEST(GateConfigTest, MixtralIsSparseThroughout) {
  OrderedJson config = ConfigOf("mixtral");
  config.erase("rope_parameters");
  const ModelSpec spec = MustParse(config);
  EXPECT_THAT(spec.SparseLayers(), ElementsAre(0, 1, 2));
  EXPECT_EQ(spec.domains[0].num_experts, 4);
  EXPECT_EQ(spec.layers[0].ffn.intermediate_size, 40);
  EXPECT_TRUE(spec.layers[0].ffn.norm_topk_prob);
  EXPECT_FALSE(spec.layers[0].attention.qk_norm);
  EXPECT_EQ(spec.layers[0].attention.rope_theta, 1e6f);
}

TEST(GateConfigTest, AModelWhoseLayersAreAllDenseHasNoExperts) {
  OrderedJson config = ConfigOf("qwen3_moe");
  config["mlp_only_layers"] = {0, 1, 2};
  const ModelSpec spec = MustParse(config);
  EXPECT_TRUE(spec.SparseLayers().empty());
  EXPECT_EQ(spec.domains[0].num_experts, 0);
}

struct Case {
  std::string model, key;
  OrderedJson value;
  absl::StatusCode code;
  std::string mentions;
};

TEST(GateConfigTest, WhatMakesNoSenseOrIsNotSupportedIsRefusedByName) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kUnimplemented = absl::StatusCode::kUnimplemented;
  std::vector<Case> cases;
  for (const std::string model : {"qwen3_moe", "mixtral"}) {
    ASSERT_TRUE(ParseModelSpec(ConfigOf(model).dump(), "").ok()) << "the undamaged control";
    for (const OrderedJson& value : {OrderedJson(0), OrderedJson(-1), OrderedJson(1 << 20), OrderedJson("8"),
                                     OrderedJson(2.5), OrderedJson(nullptr)}) {
      cases.push_back(
          {model, "num_local_experts", value, kInvalid, value.is_null() ? "is missing" : "num_local_experts"});
      cases.push_back({model, "num_experts_per_tok", value, kInvalid, "'num_experts_per_tok'"});
    }
    cases.push_back({model, "num_experts", 7, kInvalid, "'num_experts'"});
    cases.push_back({model, "num_experts_per_tok", 9, kInvalid, "'num_experts_per_tok'"});
    for (const char* key : {"shared_expert_intermediate_size", "n_shared_experts", "n_group", "topk_group",
                            "routed_scaling_factor", "first_k_dense_replace", "clip_qkv"}) {
      cases.push_back({model, key, 2, kUnimplemented, std::string("'") + key + "'"});
    }
    cases.push_back({model, "add_router_bias", true, kUnimplemented, "'add_router_bias'"});
    cases.push_back({model, "attention_bias", true, kUnimplemented, "'attention_bias'"});
    cases.push_back({model, "use_sliding_window", true, kUnimplemented, "'use_sliding_window'"});
    cases.push_back({model, "layer_types", {"full_attention", "sliding_attention"}, kUnimplemented, "'layer_types'"});
    cases.push_back({model, "layer_types", "full_attention", kInvalid, "'layer_types'"});
    cases.push_back({model, "rope_scaling", {{"rope_type", "yarn"}}, kUnimplemented, "'yarn'"});
    cases.push_back({model, "hidden_act", "gelu", kUnimplemented, "'gelu'"});
    cases.push_back({model, "architectures", {"LlamaForCausalLM"}, kUnimplemented, "'architectures'"});
    cases.push_back({model, "quantization_config", {{"quant_method", "gptq"}}, kUnimplemented, "'gptq'"});
  }
  cases.push_back({"mixtral", "sliding_window", 4096, kUnimplemented, "'sliding_window'"});
  cases.push_back({"mixtral", "intermediate_size", nullptr, kInvalid, "'intermediate_size' is missing"});
  cases.push_back({"qwen3_moe", "intermediate_size", nullptr, kInvalid, "'intermediate_size' is missing"});
  cases.push_back({"qwen3_moe", "moe_intermediate_size", nullptr, kInvalid, "'moe_intermediate_size' is missing"});
  cases.push_back({"qwen3_moe", "norm_topk_prob", 1, kInvalid, "'norm_topk_prob'"});
  cases.push_back({"qwen3_moe", "decoder_sparse_step", 0, kInvalid, "'decoder_sparse_step'"});
  cases.push_back({"qwen3_moe", "mlp_only_layers", 1, kInvalid, "'mlp_only_layers'"});
  cases.push_back({"qwen3_moe", "mlp_only_layers", {3}, kInvalid, "'mlp_only_layers'"});
  cases.push_back({"qwen3_moe", "mlp_only_layers", {-1}, kInvalid, "'mlp_only_layers'"});
  for (const Case& c : cases) {
    OrderedJson config = ConfigOf(c.model);
    config[c.key] = c.value;
    const absl::Status status = ParseModelSpec(config.dump(), "").status();
    EXPECT_EQ(status.code(), c.code) << c.model << ", " << c.key << " = " << c.value << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.mentions)) << c.key << " = " << c.value;
  }
}

// A directory with one more tensor than Transformers saves.
absl::Status OpenWithTensor(const std::string& model, const std::string& name, bool tied = false) {
  const test::TempDir dir;
  fs::copy(kModels / model, dir.path(), fs::copy_options::recursive);
  OrderedJson index = {{"weight_map", OrderedJson::object()}};
  if (fs::exists(dir.path() / "model.safetensors.index.json")) {
    index = OrderedJson::parse(ReadBytes(dir.path() / "model.safetensors.index.json"));
  } else {
    index["weight_map"]["model.norm.weight"] = "model.safetensors";
  }
  index["weight_map"][name] = "more.safetensors";
  WriteBytes(dir.path() / "model.safetensors.index.json", index.dump());
  WriteBytes(dir.path() / "more.safetensors", test::SafetensorsBytes({{name, DType::kF32, {1}, std::string(4, '\0')}}));
  EXPECT_EQ(ConfigOf(model)["tie_word_embeddings"], tied);
  return Checkpoint::Open(dir.path()).status();
}

TEST(GateConfigTest, ATensorThatTheModelHasNoUseForIsRefused) {
  for (const char* model : {"qwen3_moe", "mixtral"}) {
    for (const char* name :
         {"model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.shared_expert.up_proj.weight",
          "model.layers.0.mlp.gate.e_score_correction_bias", "model.layers.7.input_layernorm.weight"}) {
      const absl::Status status = OpenWithTensor(model, name);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("more.safetensors: tensor '" + std::string(name) + "'"));
    }
    // What follows from the config anyway.
    const absl::Status harmless = OpenWithTensor(model, "model.layers.0.self_attn.rotary_emb.inv_freq");
    EXPECT_TRUE(harmless.ok()) << harmless;
  }
  const absl::Status tied = OpenWithTensor("qwen3_moe_step", "lm_head.weight", true);
  EXPECT_TRUE(tied.ok()) << tied;
}

// Each kind of tensor must be there, under the name that its model type gives it.
TEST(GateConfigTest, AMissingTensorIsNamed) {
  for (const auto& [model, name] : {std::pair<std::string, std::string>{"qwen3_moe", "model.layers.2.mlp.gate.weight"},
                                    {"qwen3_moe", "model.layers.0.mlp.experts.7.up_proj.weight"},
                                    {"qwen3_moe", "model.layers.1.self_attn.q_norm.weight"},
                                    {"qwen3_moe", "model.layers.1.mlp.down_proj.weight"},
                                    {"mixtral", "model.layers.2.block_sparse_moe.gate.weight"},
                                    {"mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"}}) {
    const test::TempDir dir;
    fs::copy(kModels / model, dir.path(), fs::copy_options::recursive);
    ASSERT_TRUE(Checkpoint::Open(dir.path()).ok());
    std::string bytes = ReadBytes(dir.path() / "model.safetensors");
    std::string renamed = name;
    renamed[0] = 'M';
    bytes.replace(bytes.find("\"" + name + "\""), name.size() + 2, "\"" + renamed + "\"");
    WriteBytes(dir.path() / "model.safetensors", bytes);
    const absl::Status status = Checkpoint::Open(dir.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("'" + name + "' is missing"));
  }
}

}  // namespace
}  // namespace scion
