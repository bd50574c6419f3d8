// What an undamaged GGUF file gives. Damage is gguf_damage_test's subject.
#include "engine/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "engine/model/checkpoint.h"
#include "tests/support/tiny_gguf.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using namespace test;  // NOLINT: the builders of tiny_gguf.h
using ::testing::ElementsAre;

std::unique_ptr<Checkpoint> OpenFile(const fs::path& path) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

// The tensor is there, of that shape and type, and has the bytes.
void ExpectTensor(const Checkpoint& checkpoint, const std::string& name, const std::vector<int64_t>& shape, DType dtype,
                  std::string_view data) {
  const absl::StatusOr<const TensorInfo*> tensor = checkpoint.Find(name);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ((*tensor)->shape, shape) << name;
  EXPECT_EQ((*tensor)->dtype, dtype) << name;
  ASSERT_EQ((*tensor)->bytes, data.size()) << name;
  std::string read(data.size(), '\0');
  ASSERT_TRUE(checkpoint.Read(**tensor, 0, std::as_writable_bytes(std::span(read))).ok());
  EXPECT_EQ(read, data) << name;
}

class GgufTest : public ::testing::Test {
 protected:
  fs::path Write(const TinyGguf& file) {
    WriteBytes(path_, file.Bytes());
    return path_;
  }
  TempDir dir_;
  const fs::path path_ = dir_.path() / "tiny.gguf";
};

TEST_F(GgufTest, ALlamaFileGivesSpecVocabularyAndEveryTensor) {
  TinyGguf file = MakeTinyGguf();
  const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->is_gguf());
  EXPECT_EQ(checkpoint->directory(), path_);
  EXPECT_EQ(checkpoint->lock(), nullptr);
  ASSERT_EQ(checkpoint->files().size(), 1u);
  EXPECT_EQ(checkpoint->files()[0].path, "tiny.gguf");
  EXPECT_FALSE(checkpoint->files()[0].domain.has_value());

  const ModelSpec& spec = checkpoint->spec();
  EXPECT_EQ(spec.model_type, "llama");
  EXPECT_EQ(spec.vocab_size, 40);
  EXPECT_EQ(spec.hidden_size, 256);
  EXPECT_EQ(spec.max_position_embeddings, 128);
  EXPECT_EQ(spec.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(spec.tie_word_embeddings);
  ASSERT_EQ(spec.layers.size(), 2u);
  for (const LayerSpec& layer : spec.layers) {
    EXPECT_EQ(layer.attention.num_heads, 2);
    EXPECT_EQ(layer.attention.num_kv_heads, 1);
    EXPECT_EQ(layer.attention.head_dim, 16);
    EXPECT_EQ(layer.attention.rope_theta, 500000.0f);
    EXPECT_FALSE(layer.attention.qk_norm);
    EXPECT_EQ(layer.ffn.router, RouterKind::kNone);
    EXPECT_EQ(layer.ffn.intermediate_size, 32);
  }
  ASSERT_EQ(spec.domains.size(), 1u);
  EXPECT_EQ(spec.domains[0].name, "default");
  EXPECT_EQ(spec.domains[0].num_experts, 0);
  EXPECT_EQ(spec.bos_token_id, 1);
  EXPECT_THAT(spec.eos_token_ids, ElementsAre(2, 3));

  const auto expect = [&](const std::string& name, const std::vector<int64_t>& shape, DType dtype,
                          const std::string& gguf_name) {
    ExpectTensor(*checkpoint, name, shape, dtype, file.Tensor(gguf_name).data);
  };
  expect("model.embed_tokens.weight", {40, 256}, DType::kQ6K, "token_embd.weight");
  expect("model.norm.weight", {256}, DType::kF32, "output_norm.weight");
  expect("lm_head.weight", {40, 256}, DType::kQ5K, "output.weight");
  for (const std::string l : {"0", "1"}) {
    const bool first = l == "0";
    const std::string ours = "model.layers." + l + ".", theirs = "blk." + l + ".";
    expect(ours + "input_layernorm.weight", {256}, DType::kF32, theirs + "attn_norm.weight");
    expect(ours + "post_attention_layernorm.weight", {256}, first ? DType::kF16 : DType::kBF16,
           theirs + "ffn_norm.weight");
    expect(ours + "self_attn.q_proj.weight", {32, 256}, first ? DType::kQ4K : DType::kQ8_0, theirs + "attn_q.weight");
    expect(ours + "self_attn.k_proj.weight", {16, 256}, first ? DType::kQ4_0 : DType::kQ4_1, theirs + "attn_k.weight");
    expect(ours + "self_attn.v_proj.weight", {16, 256}, first ? DType::kQ5_0 : DType::kQ5_1, theirs + "attn_v.weight");
    expect(ours + "self_attn.o_proj.weight", {256, 32}, first ? DType::kBF16 : DType::kF16,
           theirs + "attn_output.weight");
    expect(ours + "mlp.gate_proj.weight", {32, 256}, DType::kF32, theirs + "ffn_gate.weight");
    expect(ours + "mlp.up_proj.weight", {32, 256}, DType::kQ4K, theirs + "ffn_up.weight");
    expect(ours + "mlp.down_proj.weight", {256, 32}, DType::kQ8_0, theirs + "ffn_down.weight");
  }
  EXPECT_EQ(checkpoint->tensors().size(), file.tensors.size());
  // Only the rows of q and k of "llama" are paired.
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    const bool paired =
        tensor.name.find("q_proj") != std::string::npos || tensor.name.find("k_proj") != std::string::npos;
    EXPECT_EQ(tensor.interleaved_head_dim, paired ? 16 : 0) << tensor.name;
  }
}

TEST_F(GgufTest, TheVocabularyIsWhatTheFileSays) {
  TinyGguf file = MakeTinyGguf();
  const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  const GgufVocabulary* vocabulary = checkpoint->vocabulary();
  ASSERT_NE(vocabulary, nullptr);
  EXPECT_EQ(vocabulary->model, "gpt2");
  EXPECT_EQ(vocabulary->pre, "qwen2");
  ASSERT_EQ(vocabulary->tokens.size(), 40u);
  for (size_t t = 0; t < 40; ++t) EXPECT_EQ(vocabulary->tokens[t], "token" + std::to_string(t));
  EXPECT_EQ(vocabulary->scores, std::vector<float>(40, -1.5f));
  EXPECT_EQ(vocabulary->types, std::vector<int32_t>(40, 1));
  EXPECT_THAT(vocabulary->merges, ElementsAre("a b", "ab c"));
  EXPECT_EQ(vocabulary->bos_token_id, 1);
  EXPECT_EQ(vocabulary->eos_token_id, 2);
  EXPECT_EQ(vocabulary->unknown_token_id, std::nullopt);
  EXPECT_EQ(vocabulary->add_bos, true);
  EXPECT_EQ(vocabulary->add_eos, std::nullopt);
  EXPECT_EQ(vocabulary->add_space_prefix, std::nullopt);
  EXPECT_EQ(vocabulary->chat_template, "{{ messages }}");
}

TEST_F(GgufTest, AFileWithoutTokenizerHasNoVocabulary) {
  std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(MakeTinyGguf({.tokenizer = false})));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->vocabulary(), nullptr);
  TinyGguf file = MakeTinyGguf({.tokenizer = false});
  file.Set("tokenizer.ggml.model", GgufText("no_vocab"));
  checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->vocabulary(), nullptr);
}

class GgufExperts : public GgufTest, public ::testing::WithParamInterface<TinyGgufOptions> {};

TEST_P(GgufExperts, AreTensorsByThemselves) {
  TinyGguf file = MakeTinyGguf(GetParam());
  const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  const bool is_qwen = GetParam().architecture == "qwen3moe";
  EXPECT_EQ(checkpoint->spec().model_type, is_qwen ? "qwen3_moe" : "llama");
  const int num_experts = GetParam().num_experts;
  EXPECT_EQ(checkpoint->spec().domains[0].num_experts, num_experts);
  for (int l = 0; l < 2; ++l) {
    const LayerSpec& layer = checkpoint->spec().layers[static_cast<size_t>(l)];
    EXPECT_EQ(layer.attention.qk_norm, is_qwen);
    EXPECT_EQ(layer.ffn.router, RouterKind::kGate);
    EXPECT_TRUE(layer.ffn.norm_topk_prob);
    EXPECT_EQ(layer.ffn.num_experts_per_tok, 1);
    EXPECT_EQ(layer.ffn.intermediate_size, 32);
    const std::string blk = "blk." + std::to_string(l) + ".";
    ExpectTensor(*checkpoint, GateTensorName(checkpoint->spec(), l), {num_experts, 256}, DType::kF32,
                 file.Tensor(blk + "ffn_gate_inp.weight").data);
    for (const auto& [projection, dtype] :
         {std::pair<std::string, DType>{"gate", DType::kF32}, {"up", DType::kQ4K}, {"down", DType::kQ8_0}}) {
      for (int e = 0; e < num_experts; ++e) {
        const std::string apart = blk + "ffn_" + projection + "." + std::to_string(e) + ".weight";
        const std::string together = blk + "ffn_" + projection + "_exps.weight";
        const std::string& data = file.Tensor(GetParam().experts_apart ? apart : together).data;
        const size_t bytes = GetParam().experts_apart ? data.size() : data.size() / static_cast<size_t>(num_experts);
        const size_t begin = GetParam().experts_apart ? 0 : static_cast<size_t>(e) * bytes;
        const std::vector<int64_t> shape =
            projection == "down" ? std::vector<int64_t>{256, 32} : std::vector<int64_t>{32, 256};
        ExpectTensor(*checkpoint, GateRoutedExpertTensorName(checkpoint->spec(), l, e, projection), shape, dtype,
                     std::string_view(data).substr(begin, bytes));
      }
    }
    const auto q = checkpoint->Find(TrunkTensorName(l, "self_attn.q_proj.weight"));
    ASSERT_TRUE(q.ok());
    EXPECT_EQ((*q)->interleaved_head_dim, is_qwen ? 0 : 16);
    EXPECT_EQ(checkpoint->Find(TrunkTensorName(l, "self_attn.k_norm.weight")).ok(), is_qwen);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufExperts,
                         ::testing::Values(TinyGgufOptions{.num_experts = 3},
                                           TinyGgufOptions{.num_experts = 3, .experts_apart = true},
                                           TinyGgufOptions{.num_experts = 1},
                                           TinyGgufOptions{.architecture = "qwen3moe", .num_experts = 3},
                                           TinyGgufOptions{.architecture = "qwen3moe", .num_experts = 2, .tied = true}),
                         [](const auto& info) { return "case" + std::to_string(info.index); });

TEST_F(GgufTest, WritersDropTheDimensionOfASingleExpert) {
  TinyGguf file = MakeTinyGguf({.num_experts = 1});
  for (TinyGgufTensor& tensor : file.tensors) {
    if (tensor.name.ends_with("_exps.weight")) tensor.dims.pop_back();
  }
  EXPECT_NE(OpenFile(Write(file)), nullptr);
}

TEST_F(GgufTest, WithoutOutputTheEmbeddingIsTied) {
  const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(MakeTinyGguf({.tied = true})));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->spec().tie_word_embeddings);
}

TEST_F(GgufTest, Version2HasTheSameLayout) {
  TinyGguf file = MakeTinyGguf();
  file.version = 2;
  EXPECT_NE(OpenFile(Write(file)), nullptr);
}

TEST_F(GgufTest, AnyAlignmentThatIsAPowerOfTwo) {
  for (uint32_t alignment : {8u, 64u, 4096u}) {
    TinyGguf file = MakeTinyGguf();
    file.Set("general.alignment", GgufU32(alignment));
    file.alignment = alignment;
    const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
    ASSERT_NE(checkpoint, nullptr) << alignment;
    ExpectTensor(*checkpoint, "lm_head.weight", {40, 256}, DType::kQ5K, file.Tensor("output.weight").data);
  }
}

TEST_F(GgufTest, TheLastTensorNeedsNoPadding) {
  TinyGguf file = MakeTinyGguf({.tied = true});
  file.AddTensor("output.weight", {256, 40}, 13);
  file.tensors.back().type = 8;  // 40 rows of 8 blocks of 34 bytes
  file.tensors.back().data = std::string(40 * 8 * 34, '\1');
  file.Set("general.alignment", GgufU32(4096));
  file.alignment = 4096;
  std::string bytes = file.Bytes();
  bytes.resize(bytes.find_last_of('\1') + 1);
  WriteBytes(path_, bytes);
  EXPECT_NE(OpenFile(path_), nullptr);
}

TEST_F(GgufTest, SettingsThatAreOffAreNoFeatures) {
  TinyGguf file = MakeTinyGguf();
  file.Set("llama.rope.scaling.type", GgufText("none"));
  file.Set("llama.rope.scaling.factor", GgufF32(8.0f));
  file.Set("llama.attention.sliding_window", GgufU32(0));
  file.Set("llama.expert_count", GgufU32(0));
  file.Set("llama.expert_used_count", GgufU32(0));
  file.Set("llama.expert_shared_count", GgufU32(0));
  file.Set("llama.logit_scale", GgufF32(1.0f));
  file.Set("llama.attention.causal", GgufBool(1));
  file.Set("llama.vocab_size", GgufU32(40));
  EXPECT_NE(OpenFile(Write(file)), nullptr);
}

TEST_F(GgufTest, DefaultsOfAbsentKeys) {
  TinyGguf file = MakeTinyGguf();
  file.Remove("llama.rope.freq_base");
  file.Remove("llama.rope.dimension_count");
  file.Remove("tokenizer.ggml.bos_token_id");
  file.Remove("tokenizer.ggml.pre");
  file.Remove("tokenizer.ggml.scores");
  file.Remove("tokenizer.ggml.merges");
  std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->spec().layers[0].attention.rope_theta, 10000.0f);
  EXPECT_EQ(checkpoint->spec().bos_token_id, std::nullopt);
  EXPECT_EQ(checkpoint->vocabulary()->pre, "");
  EXPECT_TRUE(checkpoint->vocabulary()->scores.empty());
  EXPECT_TRUE(checkpoint->vocabulary()->merges.empty());

  // Heads of hidden_size / head_count, as many for k and v as for q.
  file = MakeTinyGguf();
  for (const char* key : {"head_count_kv", "key_length", "value_length"})
    file.Remove(std::string("llama.attention.") + key);
  file.Remove("llama.rope.dimension_count");
  file.Set("llama.attention.head_count", GgufU32(1));
  for (const std::string l : {"blk.0.", "blk.1."}) {
    for (const std::string name : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
      file.RemoveTensor(l + name + ".weight");
      file.AddTensor(l + name + ".weight", {256, 256}, 8);
    }
  }
  checkpoint = OpenFile(Write(file));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->spec().layers[0].attention.head_dim, 256);
  EXPECT_EQ(checkpoint->spec().layers[0].attention.num_kv_heads, 1);
}

TEST_F(GgufTest, ALinkToAFileIsFollowed) {
  Write(MakeTinyGguf());
  fs::create_symlink(path_, dir_.path() / "link");
  const std::unique_ptr<Checkpoint> checkpoint = OpenFile(dir_.path() / "link");
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->is_gguf());
}

TEST_F(GgufTest, WhatIsNeitherDirectoryNorGgufIsRefused) {
  WriteBytes(dir_.path() / "text", "no magic");
  WriteBytes(dir_.path() / "empty", "");
  for (const char* name : {"text", "empty", "/dev/null"}) {
    const absl::Status status = Checkpoint::Open(dir_.path() / name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("not a directory"));
  }
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(dir_.path() / "none").status()));
}

// Of whatever type the numbers are.
TEST_F(GgufTest, IntegersOfEveryTypeAreSizes) {
  for (const std::string& value : {GgufI32(128), GgufU64(128), GgufI64(128), GgufValueOf(0, "\x80"),
                                   GgufValueOf(2, GgufRaw(128, 2)), GgufValueOf(3, GgufRaw(128, 2))}) {
    TinyGguf file = MakeTinyGguf();
    file.Set("llama.context_length", value);
    const std::unique_ptr<Checkpoint> checkpoint = OpenFile(Write(file));
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_EQ(checkpoint->spec().max_position_embeddings, 128);
  }
}

TEST_F(GgufTest, EveryValueTypeIsRead) {
  Write(MakeTinyGguf());
  const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(path_);
  ASSERT_TRUE(file.ok());
  const absl::StatusOr<GgufHeader> header = ReadGgufHeader(*file, "tiny.gguf");
  ASSERT_TRUE(header.ok()) << header.status();
  const GgufMetadata& metadata = header->metadata;
  const auto is = [&](std::string_view key, const GgufValue& value) {
    return metadata.Find(key) != nullptr && *metadata.Find(key) == value;
  };
  EXPECT_TRUE(is("other.u8", uint64_t{1}));
  EXPECT_TRUE(is("other.i8", int64_t{-1}));
  EXPECT_TRUE(is("other.u16", uint64_t{2}));
  EXPECT_TRUE(is("other.i16", int64_t{3}));
  EXPECT_TRUE(is("llama.block_count", uint64_t{2}));
  EXPECT_TRUE(is("llama.rope.freq_base", 500000.0));
  EXPECT_TRUE(is("other.u64", ~uint64_t{0}));
  EXPECT_TRUE(is("other.i64", INT64_MIN));
  EXPECT_TRUE(is("other.f64", 0.5));
  EXPECT_TRUE(is("tokenizer.ggml.add_bos_token", true));
  EXPECT_TRUE(is("general.name", std::string("tiny")));
  const auto bools = metadata.GetOptionalArray("other.bools");
  ASSERT_TRUE(bools.ok() && bools->has_value());
  EXPECT_EQ((*bools)->type, GgufType::kBool);
  EXPECT_EQ((*bools)->count, 3u);
  EXPECT_EQ((*bools)->bytes, 3u);
  EXPECT_EQ(metadata.Find("absent"), nullptr);
}

TEST_F(GgufTest, AHeaderBeyondTheLimitIsRefusedUnread) {
  TinyGguf file = MakeTinyGguf();
  file.Set("other.bools", GgufArrayOf(0, kMaxGgufHeaderBytes, ""));
  Write(file);
  fs::resize_file(path_, 2 * kMaxGgufHeaderBytes);  // a hole
  const absl::Status status = Checkpoint::Open(path_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("tiny.gguf: key 'other.bools'"));
}

// Files of another writer, the Python package that goes with the format.
TEST(GgufGolden, FilesOfTheReferenceWriterOpen) {
  const fs::path golden = fs::path(SCION_SOURCE_DIR) / "tests" / "golden" / "gguf";
  struct Case {
    const char* name;
    const char* model_type;
    int head_dim, num_experts, intermediate_size;
    float rope_theta;
    bool tied;
  };
  for (const Case& c : {Case{"llama", "llama", 16, 0, 256, 500000.0f, false},
                        Case{"llama_experts", "llama", 16, 4, 64, 10000.0f, false},
                        Case{"qwen3moe", "qwen3_moe", 32, 8, 32, 1000000.0f, true}}) {
    const std::unique_ptr<Checkpoint> checkpoint = OpenFile(golden / (std::string(c.name) + ".gguf"));
    ASSERT_NE(checkpoint, nullptr);
    const ModelSpec& spec = checkpoint->spec();
    EXPECT_EQ(spec.model_type, c.model_type);
    EXPECT_EQ(spec.vocab_size, 272);
    EXPECT_EQ(spec.hidden_size, 64);
    EXPECT_EQ(spec.tie_word_embeddings, c.tied);
    EXPECT_EQ(spec.domains[0].num_experts, c.num_experts);
    ASSERT_EQ(spec.layers.size(), 2u);
    EXPECT_EQ(spec.layers[1].attention.head_dim, c.head_dim);
    EXPECT_EQ(spec.layers[1].attention.rope_theta, c.rope_theta);
    EXPECT_EQ(spec.layers[1].ffn.intermediate_size, c.intermediate_size);
    ASSERT_NE(checkpoint->vocabulary(), nullptr);
    EXPECT_EQ(checkpoint->vocabulary()->tokens[104], "h");
    EXPECT_EQ(checkpoint->vocabulary()->tokens[32], "\xc4\xa0") << "GPT-2's character of the space";
    EXPECT_EQ(checkpoint->vocabulary()->tokens[271], "<|end|>");
    EXPECT_EQ(checkpoint->vocabulary()->types[271], 3);
    EXPECT_EQ(checkpoint->vocabulary()->merges.size(), 15u);
    EXPECT_EQ(checkpoint->vocabulary()->eos_token_id, 271);
    EXPECT_EQ(checkpoint->vocabulary()->add_bos, false);
  }
}

}  // namespace
}  // namespace scion
