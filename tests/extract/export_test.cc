// An export says the same to Scion as its source does: the same logits, bit for bit; and its form is what other readers
// expect: names, types, orders of rows, metadata.
#include "extract/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/model/gguf.h"
#include "extract/gguf_header.h"
#include "extract/quantize.h"
#include "extract/staging.h"
#include "tests/extract/export_fixture.h"
#include "tests/support/tiny_gguf.h"

namespace scion::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const fs::path kGolden = fs::path(SCION_SOURCE_DIR) / "tests/golden";

GgufHeader HeaderOf(const fs::path& path) {
  const auto file = ReadOnlyFile::Open(path);
  const auto header = ReadGgufHeader(*file, path.filename().string());
  if (!header.ok()) throw std::runtime_error(header.status().ToString());
  return *header;
}

const TensorInfo* FindIn(const GgufHeader& header, std::string_view name) {
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::string DataOf(const fs::path& path, const TensorInfo& tensor) {
  return ReadBytes(path).substr(tensor.offset, tensor.bytes);
}

TinyModelOptions Llama() { return {.model_type = "llama", .num_heads = 4, .num_kv_heads = 2, .with_index = false}; }
TinyModelOptions Gated(const char* model_type) {
  return {.model_type = model_type, .num_heads = 4, .num_kv_heads = 2, .num_experts_per_tok = 2, .with_index = false};
}

struct Source {
  const char* name;
  TinyModelOptions options;
};
std::vector<Source> Sources() {
  std::vector<Source> sources = {{"Llama", Llama()},
                                 {"LlamaF32Untied", Llama()},
                                 {"LlamaF16", Llama()},
                                 {"ScionWithoutSparseLayers", Llama()},
                                 {"Qwen3Moe", Gated("qwen3_moe")},
                                 {"Mixtral", Gated("mixtral")},
                                 {"LlamaQ8", Llama()},
                                 {"LlamaQ4K", Llama()},
                                 {"Qwen3MoeQ4", Gated("qwen3_moe")},
                                 {"MixtralQ5", Gated("mixtral")}};
  sources[1].options.dtype = DType::kF32;
  sources[1].options.tie_word_embeddings = false;
  sources[2].options.dtype = DType::kF16;
  sources[3].options.model_type = "scion";
  sources[3].options.sparse_layers = {};
  sources[5].options.tie_word_embeddings = false;
  sources[6].options.blocks = DType::kQ8_0;
  sources[7].options.hidden_size = sources[7].options.intermediate_size = 256;
  sources[7].options.blocks = DType::kQ4K;
  sources[8].options.blocks = DType::kQ4_0;
  sources[8].options.moe_intermediate_size = 64;
  sources[9].options.blocks = DType::kQ5_1;
  return sources;
}

class ExportSourceTest : public ExportTest, public testing::WithParamInterface<Source> {};

TEST_P(ExportSourceTest, AnExportHasTheLogitsOfItsSource) {
  Write(GetParam().options);
  ASSERT_TRUE(Ok(ToGguf(model(), gguf())));
  const std::vector<float> expected = LogitsOf(model());
  EXPECT_TRUE(SameBits(LogitsOf(gguf()), expected));
  ExpectOnly({"model", "out.gguf"});

  // And so has a plain directory, of either; blocks are F32 there, which is what fp32 makes of them.
  const WeightMode mode = GetParam().options.blocks.has_value() ? WeightMode::kF32 : WeightMode::kAsIs;
  const std::vector<float> plain = LogitsOf(model(), mode);
  ASSERT_TRUE(Ok(ToHf(model(), hf())));
  EXPECT_TRUE(SameBits(LogitsOf(hf(), mode), plain));
  ASSERT_TRUE(Ok(ToHf(gguf(), dir_.path() / "back")));
  EXPECT_TRUE(SameBits(LogitsOf(dir_.path() / "back", mode), plain));
  // A GGUF file of the plain directory, and one of the first.
  ASSERT_TRUE(Ok(ToGguf(dir_.path() / "back", dir_.path() / "again.gguf")));
  EXPECT_TRUE(SameBits(LogitsOf(dir_.path() / "again.gguf", mode), plain));
  ASSERT_TRUE(Ok(ToGguf(gguf(), dir_.path() / "copy.gguf")));
  EXPECT_TRUE(SameBits(LogitsOf(dir_.path() / "copy.gguf"), expected));
}

TEST_P(ExportSourceTest, OtherTypesChangeTheWeightsAndNothingElse) {
  Write(GetParam().options);
  ASSERT_TRUE(Ok(ToGguf(model(), gguf(), DType::kF32)));
  const std::vector<float> plain = LogitsOf(model(), WeightMode::kF32);
  EXPECT_TRUE(SameBits(LogitsOf(gguf()), plain));
  ASSERT_TRUE(Ok(ToHf(model(), hf(), DType::kF32)));
  EXPECT_TRUE(SameBits(LogitsOf(hf()), plain));
  ASSERT_TRUE(Ok(ToGguf(model(), dir_.path() / "bf16.gguf", DType::kBF16)));
  ASSERT_TRUE(Ok(ToHf(gguf(), dir_.path() / "bf16", DType::kBF16)));
  const std::vector<float> rounded = LogitsOf(dir_.path() / "bf16.gguf");
  if (GetParam().options.dtype == DType::kBF16) {
    // Norms are F32 in the one and BF16 in the other.
    EXPECT_TRUE(SameBits(LogitsOf(dir_.path() / "bf16"), rounded));
    const bool has_blocks = GetParam().options.blocks.has_value();
    EXPECT_TRUE(has_blocks || SameBits(rounded, LogitsOf(model())));
  }
  ASSERT_TRUE(Ok(ToHf(model(), dir_.path() / "f16", DType::kF16)));
}

INSTANTIATE_TEST_SUITE_P(Sources, ExportSourceTest, testing::ValuesIn(Sources()),
                         [](const auto& info) { return info.param.name; });

TEST_F(ExportTest, BlocksAreThoseOfQuantize) {
  TinyModelOptions options = Llama();
  options.hidden_size = options.intermediate_size = 64;
  options.tie_word_embeddings = false;
  Write(options);
  for (DType type : {DType::kQ8_0, DType::kQ4_0}) {
    const fs::path out = dir_.path() / DTypeName(type), quantized = dir_.path() / ("q-" + std::string(DTypeName(type)));
    ASSERT_TRUE(Ok(ToGguf(model(), out, type)));
    ASSERT_TRUE(Ok(
        Quantize({.model = model(), .out = quantized, .type = type, .version = "test", .now = TestTime()}).status()));
    EXPECT_TRUE(SameBits(LogitsOf(out), LogitsOf(quantized)));
    const GgufHeader header = HeaderOf(out);
    EXPECT_EQ(FindIn(header, "output.weight")->dtype, DType::kQ8_0);
    EXPECT_EQ(FindIn(header, "token_embd.weight")->dtype, DType::kQ8_0);
    EXPECT_EQ(FindIn(header, "blk.1.ffn_down.weight")->dtype, type);
  }
}

TEST_F(ExportTest, RowsOfQAndKComeInPairsInLlamaAndNotInQwen) {
  for (const char* type : {"llama", "mixtral", "qwen3_moe"}) {
    TinyModelOptions options = Gated(type);
    options.dtype = DType::kF32;
    TinyModel tiny = MakeTinyModel(options);
    // Every element of row r of head h of q is 100 h + r.
    TinyTensor& q = tiny.Tensor("model.layers.1.self_attn.q_proj.weight");
    std::vector<float> values;
    for (int r = 0; r < 64; ++r) values.insert(values.end(), 32, static_cast<float>(r / 16 * 100 + r % 16));
    q.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    const fs::path source = dir_.path() / type, out = dir_.path() / (std::string(type) + ".gguf");
    WriteTinyModel(tiny, source);
    ASSERT_TRUE(Ok(ToGguf(source, out)));
    const GgufHeader header = HeaderOf(out);
    const std::string data = DataOf(out, *FindIn(header, "blk.1.attn_q.weight"));
    std::vector<float> rows;
    for (size_t r = 16; r < 32; ++r) {
      float value;
      std::memcpy(&value, data.data() + r * 32 * sizeof(float), sizeof(value));
      rows.push_back(value);
    }
    if (std::string_view(type) == "qwen3_moe") {
      EXPECT_THAT(rows, ElementsAre(100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115));
    } else {
      EXPECT_THAT(rows, ElementsAre(100, 108, 101, 109, 102, 110, 103, 111, 104, 112, 105, 113, 106, 114, 107, 115));
    }
  }
}

TEST_F(ExportTest, NamesAndTypesAreThoseThatOthersRead) {
  Write(Llama());
  ASSERT_TRUE(Ok(ToGguf(model(), gguf())));
  const GgufHeader header = HeaderOf(gguf());
  EXPECT_EQ(header.version, 3u);
  // A tied head is left out.
  EXPECT_EQ(header.tensors.size(), 2u + 3 * 9);
  EXPECT_EQ(FindIn(header, "output.weight"), nullptr);
  for (const char* name : {"output_norm.weight", "blk.2.attn_norm.weight", "blk.0.ffn_norm.weight"}) {
    EXPECT_EQ(FindIn(header, name)->dtype, DType::kF32) << name;
  }
  EXPECT_EQ(FindIn(header, "blk.2.attn_output.weight")->dtype, DType::kBF16);
  for (const TensorInfo& tensor : header.tensors) EXPECT_EQ(tensor.offset % 32, 0u) << tensor.name;
  const auto number = [&](const char* key) { return *header.metadata.GetInt(key, 0, 1 << 20); };
  EXPECT_EQ(*header.metadata.GetString("general.architecture"), "llama");
  EXPECT_EQ(*header.metadata.GetString("general.name"), "model");
  EXPECT_EQ(number("general.file_type"), 32);
  EXPECT_EQ(number("llama.vocab_size"), 97);
  EXPECT_EQ(number("llama.context_length"), 128);
  EXPECT_EQ(number("llama.embedding_length"), 32);
  EXPECT_EQ(number("llama.block_count"), 3);
  EXPECT_EQ(number("llama.feed_forward_length"), 48);
  EXPECT_EQ(number("llama.attention.head_count"), 4);
  EXPECT_EQ(number("llama.attention.head_count_kv"), 2);
  EXPECT_EQ(number("llama.attention.key_length"), 16);
  EXPECT_EQ(number("llama.attention.value_length"), 16);
  EXPECT_EQ(number("llama.rope.dimension_count"), 16);
  EXPECT_EQ(static_cast<float>(**header.metadata.GetOptionalNumber("llama.attention.layer_norm_rms_epsilon")), 1e-5f);
  EXPECT_EQ(**header.metadata.GetOptionalNumber("llama.rope.freq_base"), 10000);
  EXPECT_EQ(*header.metadata.GetString("tokenizer.ggml.model"), "none");
  EXPECT_EQ(number("tokenizer.ggml.bos_token_id"), 0);
  EXPECT_EQ(number("tokenizer.ggml.eos_token_id"), 1);
  EXPECT_EQ(header.metadata.Find("llama.expert_count"), nullptr);
}

TEST(GgufHeaderTest, WhatReadersWouldRefuseIsNotWritten) {
  const std::vector<int64_t> shape = {2, 32};
  const auto refused = [&](auto add, const char* what) {
    GgufHeaderWriter header;
    header.AddUint32("a.key", 1);
    header.AddTensor("a.tensor", shape, DType::kQ8_0, 68);
    EXPECT_EQ(header.Finish()->size() % 32, 0u);  // the control
    add(header);
    EXPECT_EQ(header.Finish().status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(header.Finish().status().message()), HasSubstr(what));
  };
  refused([](auto& h) { h.AddBool("a.key", true); }, "'a.key' comes twice");
  refused([&](auto& h) { h.AddTensor("a.tensor", shape, DType::kF32, 256); }, "'a.tensor' comes twice");
  refused([&](auto& h) { h.AddTensor(std::string(64, 'x'), shape, DType::kF32, 256); }, "longer than readers take");
  refused([&](auto& h) { h.AddTensor("x", shape, DType::kI32, 256); }, "'x' is of a type");
  refused([&](auto& h) { h.AddTensor("x", {}, DType::kF32, 4); }, "'x' has a shape");
  refused([&](auto& h) { h.AddTensor("x", shape, DType::kF32, INT64_MAX); }, "'x' lies beyond 63 bits");
  refused([](auto& h) { h.AddString("x", std::string((4 << 20) + 1, ' ')); }, "'x' is longer");
}

TEST_F(ExportTest, ExpertsAreStacked) {
  for (const auto& [type, architecture] : {std::pair{"qwen3_moe", "qwen3moe"}, {"mixtral", "llama"}}) {
    const fs::path source = dir_.path() / type, out = dir_.path() / (std::string(type) + ".gguf");
    TinyModel tiny = MakeTinyModel(Gated(type));
    WriteTinyModel(tiny, source);
    ASSERT_TRUE(Ok(ToGguf(source, out)));
    const GgufHeader header = HeaderOf(out);
    const auto number = [&](const std::string& key) {
      return *header.metadata.GetInt(std::string(architecture) + "." + key, 0, 1 << 20);
    };
    EXPECT_EQ(number("expert_count"), 4);
    EXPECT_EQ(number("expert_used_count"), 2);
    EXPECT_EQ(number("feed_forward_length"), 40);
    if (std::string_view(type) == "qwen3_moe") {
      EXPECT_EQ(number("expert_feed_forward_length"), 40);
    }
    EXPECT_EQ(FindIn(header, "blk.1.ffn_gate_inp.weight")->dtype, DType::kF32);
    const TensorInfo* down = FindIn(header, "blk.1.ffn_down_exps.weight");
    ASSERT_NE(down, nullptr);
    EXPECT_EQ(down->shape, (std::vector<int64_t>{4, 32, 40}));
    const std::string third =
        std::string_view(type) == "mixtral" ? "block_sparse_moe.experts.3.w2.weight" : "mlp.experts.3.down_proj.weight";
    EXPECT_EQ(DataOf(out, *down).substr(3 * 32 * 40 * 2), tiny.Tensor("model.layers.1." + third).data);
  }
}

TEST_F(ExportTest, FilesOfOthersComeBackAsPlainDirectories) {
  // Written by the `gguf` package and by Transformers.
  for (const char* name : {"llama", "llama_experts", "qwen3moe"}) {
    const fs::path source = kGolden / "gguf" / (std::string(name) + ".gguf"), out = dir_.path() / name;
    ASSERT_TRUE(Ok(ToHf(source, out)));
    EXPECT_TRUE(SameBits(LogitsOf(out, WeightMode::kF32), LogitsOf(source, WeightMode::kF32))) << name;
    ASSERT_TRUE(Ok(ToGguf(source, dir_.path() / (std::string(name) + ".gguf"))));
    EXPECT_TRUE(SameBits(LogitsOf(dir_.path() / (std::string(name) + ".gguf")), LogitsOf(source))) << name;
  }
  for (const char* name : {"llama", "mixtral", "qwen3_moe", "qwen3_moe_step"}) {
    const fs::path source = kGolden / "models" / name, out = dir_.path() / (std::string(name) + "-plain");
    ASSERT_TRUE(Ok(ToHf(source, out)));
    EXPECT_TRUE(SameBits(LogitsOf(out), LogitsOf(source))) << name;
  }
}

TEST_F(ExportTest, ManyShardsAreOneModel) {
  Write(Gated("mixtral"));
  ASSERT_TRUE(Ok(ToHf(model(), hf(), {}, 50'000)));
  const std::vector<std::string> names = Names(hf());
  EXPECT_THAT(names, testing::IsSupersetOf({"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors",
                                            "model.safetensors.index.json"}));
  EXPECT_TRUE(SameBits(LogitsOf(hf()), LogitsOf(model())));
}

TEST_F(ExportTest, ARoutingTableIsRefusedWithAdvice) {
  Write({});
  const absl::Status status = ToGguf(model(), gguf());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(model().string()), HasSubstr("layer 1"), HasSubstr("moe-extract densify")));
  ExpectOnly({"model"});
}

TEST_F(ExportTest, TheOneExpertOfACutIsAnFfn) {
  TinyModelOptions options;
  options.domains = {{"alpha", 3}, {"beta", 1}};
  options.intermediate_size = options.moe_intermediate_size;
  Write(options);
  const fs::path cut = dir_.path() / "cut";
  ASSERT_TRUE(Ok(Cut(model(), {"beta"}, cut).status()));
  ASSERT_TRUE(Ok(ToGguf(cut, gguf())));
  ASSERT_TRUE(Ok(ToHf(cut, hf())));
  const std::vector<float> expected = LogitsOf(cut);
  EXPECT_TRUE(SameBits(LogitsOf(gguf()), expected));
  EXPECT_TRUE(SameBits(LogitsOf(hf()), expected));

  // Not if it is weighted, or of another width.
  options.domains = {{"beta", 1}};
  options.default_domain = "beta";
  options.route_weights = true;
  WriteTinyModel(MakeTinyModel(options), dir_.path() / "weighted");
  EXPECT_THAT(std::string(ToGguf(dir_.path() / "weighted", dir_.path() / "out").message()),
              HasSubstr("weights its expert"));
  options.route_weights = false;
  options.intermediate_size = 48;
  WriteTinyModel(MakeTinyModel(options), dir_.path() / "narrow");
  EXPECT_THAT(std::string(ToGguf(dir_.path() / "narrow", dir_.path() / "out").message()),
              HasSubstr("layer 0 has an FFN of 48, layer 1 one of 40"));
}

TEST_F(ExportTest, WhatGgufCannotSayIsRefusedByName) {
  const auto refused = [&](const fs::path& source, const char* what) {
    const absl::Status status = ToGguf(source, gguf());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(source.string()), HasSubstr(what)));
  };
  refused(kGolden / "models/qwen3_moe", "layer 1 has no experts");
  TinyModel tiny = MakeTinyModel(Gated("qwen3_moe"));
  tiny.config["norm_topk_prob"] = false;
  WriteTinyModel(tiny, model());
  refused(model(), "'norm_topk_prob'");
  tiny = MakeTinyModel(Llama());
  tiny.generation_config["eos_token_id"] = {1, 2, 3, 4};
  WriteTinyModel(tiny, model());
  refused(model(), "4 tokens end a text");
  tiny = MakeTinyModel(Llama());
  tiny.config["model_type"] = "mamba";
  WriteTinyModel(tiny, model());
  refused(model(), "'mamba'");
  ExpectOnly({"model"});
}

TEST_F(ExportTest, BlocksAreNeverRoundedAgain) {
  TinyModelOptions options = Llama();
  options.blocks = DType::kQ8_0;
  Write(options);
  absl::Status status = ToGguf(model(), gguf(), DType::kQ4_0);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantised already, to Q8_0"));
  status = ToHf(model(), hf(), DType::kQ8_0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  // The same type is no rounding.
  ASSERT_TRUE(Ok(ToGguf(model(), gguf(), DType::kQ8_0)));
  EXPECT_TRUE(SameBits(LogitsOf(gguf()), LogitsOf(model())));
}

TEST_F(ExportTest, ExpertsOfDifferentTypesAreNoTensor) {
  TinyModel tiny = MakeTinyModel(Gated("mixtral"));
  TinyTensor& w1 = tiny.Tensor("model.layers.1.block_sparse_moe.experts.2.w1.weight");
  w1.dtype = DType::kF16;
  WriteTinyModel(tiny, model());
  const absl::Status status = ToGguf(model(), gguf());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("experts.2.w1.weight"), HasSubstr("F16")));
  ASSERT_TRUE(Ok(ToHf(model(), hf())));
  ExpectOnly({"hf", "model"});
}

TEST_F(ExportTest, NothingIsReplacedAndNothingIsLeft) {
  TinyModelOptions options = Llama();
  options.dtype = DType::kF32;
  TinyModel tiny = MakeTinyModel(options);
  const float large = 1e6f;
  std::memcpy(tiny.Tensor("model.layers.2.mlp.up_proj.weight").data.data() + 5 * 32 * 4, &large, sizeof(large));
  WriteTinyModel(tiny, model());
  for (const absl::Status& status : {ToGguf(model(), gguf(), DType::kF16), ToHf(model(), hf(), DType::kF16)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("model.layers.2.mlp.up_proj.weight"),
                                                     HasSubstr("row 5 has a weight too large for F16")));
  }
  ExpectOnly({"model"});

  WriteBytes(gguf(), "mine");
  fs::create_directory(hf());
  EXPECT_EQ(ToGguf(model(), gguf()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ToHf(model(), hf()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ToHf(model(), model() / "inside").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ToGguf(model(), model() / "inside.gguf").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ToGguf(model(), dir_.path() / "none" / "x.gguf").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ToGguf(dir_.path() / "none", dir_.path() / "x.gguf").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadBytes(gguf()), "mine");
  ExpectOnly({"hf", "model", "out.gguf"});
}

TEST_F(ExportTest, WhatAKilledRunHasLeftIsOverwritten) {
  Write(Llama());
  WriteBytes(StagingPath(gguf()), std::string(1 << 20, 'x'));
  ASSERT_TRUE(Ok(ToGguf(model(), gguf())));
  ASSERT_TRUE(Ok(ToGguf(model(), dir_.path() / "control.gguf")));
  EXPECT_EQ(ReadBytes(gguf()), ReadBytes(dir_.path() / "control.gguf"));
  ExpectOnly({"control.gguf", "model", "out.gguf"});
}

TEST_F(ExportTest, AModelThatIsNotWhatItsLockSaysIsNotExported) {
  TinyModelOptions options = Llama();
  options.model_type = "scion";
  options.sparse_layers = {};
  options.with_lock = true;
  Write(options);
  ASSERT_TRUE(Ok(ToGguf(model(), dir_.path() / "control.gguf")));
  const fs::path trunk = model() / "trunk.safetensors";
  FlipByte(trunk, fs::file_size(trunk) - 7);
  const absl::Status status = ToGguf(model(), gguf());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("trunk.safetensors is not what the model's lock says"));
  ExpectOnly({"control.gguf", "model"});
}

}  // namespace
}  // namespace scion::test
