// Damaged GGUF files are refused with the stated code and a message that names file and key or tensor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"
#include "tests/engine/model/damage.h"
#include "tests/support/tiny_gguf.h"

namespace scion::test {
namespace {

using absl::StatusCode;

struct GgufDamage {
  std::string name;
  std::function<void(TinyGguf&)> edit = [](TinyGguf&) {};
  std::function<void(std::string&)> edit_bytes = [](std::string&) {};  // of what `edit` has left
  StatusCode code = StatusCode::kDataLoss;
  std::vector<std::string> mentions = {};
  TinyGgufOptions options = {};
};
void PrintTo(const GgufDamage& damage, std::ostream* out) { *out << damage.name; }

std::string BytesOf(const GgufDamage& damage) {
  TinyGguf file = MakeTinyGguf(damage.options);
  damage.edit(file);
  std::string bytes = file.Bytes();
  damage.edit_bytes(bytes);
  return bytes;
}

class DamagedGguf : public ::testing::TestWithParam<GgufDamage> {};

TEST_P(DamagedGguf, IsRefusedWithTheStatedCodeAndNames) {
  const GgufDamage& damage = GetParam();
  const TempDir dir;
  const auto path = dir.path() / "tiny.gguf";
  WriteBytes(path, MakeTinyGguf(damage.options).Bytes());
  const absl::Status whole = Checkpoint::Open(path).status();
  ASSERT_TRUE(whole.ok()) << "the undamaged control: " << whole;

  WriteBytes(path, BytesOf(damage));
  const absl::Status status = Checkpoint::Open(path).status();
  EXPECT_EQ(status.code(), damage.code) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("tiny.gguf"));
  for (const std::string& word : damage.mentions) {
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(word));
  }
}

void ExpectTwentyDifferent(const std::vector<GgufDamage>& damages) {
  EXPECT_GE(damages.size(), 20u);
  std::map<std::string, std::string> seen;
  for (const GgufDamage& damage : damages) {
    const auto [same, is_new] = seen.emplace(BytesOf(damage), damage.name);
    EXPECT_TRUE(is_new) << damage.name << " is the same as " << same->second;
  }
}

#define SCION_GGUF_DAMAGE_CLASS(Class, cases)                                 \
  INSTANTIATE_TEST_SUITE_P(Class, DamagedGguf, ::testing::ValuesIn(cases),    \
                           [](const auto& info) { return info.param.name; }); \
  TEST(GgufDamageClass, Class##HasTwentyDifferentCases) { ExpectTwentyDifferent(cases); }

constexpr uint64_t kHuge[] = {uint64_t{1} << 31,       uint64_t{1} << 40, uint64_t{1} << 60,
                              (uint64_t{1} << 61) + 1, uint64_t{1} << 63, ~uint64_t{0}};

std::vector<GgufDamage> HeaderAndCounts() {
  std::vector<GgufDamage> damages;
  const auto version = [&](uint32_t v, const std::string& word) {
    damages.push_back({.name = "version_" + std::to_string(v),
                       .edit = [=](TinyGguf& f) { f.version = v; },
                       .code = StatusCode::kUnimplemented,
                       .mentions = {word}});
  };
  version(0, "version 0");
  version(1, "version 1; versions 2 and 3 are supported");
  version(4, "version 4");
  version(0xffffffff, "version 4294967295");
  version(0x02000000, "big-endian");
  version(0x03000000, "big-endian");
  for (size_t bytes : {4, 5, 8, 12, 16, 20, 23}) {
    damages.push_back({.name = "cut_at_" + std::to_string(bytes),
                       .edit_bytes = [=](std::string& b) { b.resize(bytes); },
                       .mentions = {"header", "reaches beyond the file's " + std::to_string(bytes) + " bytes"}});
  }
  for (uint64_t count : kHuge) {
    damages.push_back({.name = "tensor_count_" + std::to_string(count),
                       .edit = [=](TinyGguf& f) { f.num_tensors = count; },
                       .mentions = {"tensor count " + std::to_string(count)}});
    damages.push_back({.name = "key_count_" + std::to_string(count),
                       .edit = [=](TinyGguf& f) { f.num_keys = count; },
                       .mentions = {"key count " + std::to_string(count)}});
  }
  damages.push_back({.name = "tensors_beyond_the_limit",
                     .edit = [](TinyGguf& f) { f.num_tensors = kMaxTensors + 1; },
                     .edit_bytes = [](std::string& b) { b.resize(8 << 20); },
                     .code = StatusCode::kResourceExhausted,
                     .mentions = {"131073 tensors, more than the limit of 131072"}});
  damages.push_back({.name = "keys_beyond_the_limit",
                     .edit = [](TinyGguf& f) { f.num_keys = kMaxGgufKeys + 1; },
                     .edit_bytes = [](std::string& b) { b.resize(8 << 20); },
                     .code = StatusCode::kResourceExhausted,
                     .mentions = {"16385 keys, more than the limit of 16384"}});
  damages.push_back({.name = "one_key_more",
                     .edit = [](TinyGguf& f) { f.num_keys = f.keys.size() + 1; },
                     .mentions = {"tensor 0", "string of length"}});
  damages.push_back({.name = "one_key_less",
                     .edit = [](TinyGguf& f) { f.num_keys = f.keys.size() - 1; },
                     .mentions = {"tensor 'other.none'"}});
  damages.push_back({.name = "one_tensor_more",
                     .edit = [](TinyGguf& f) { f.num_tensors = f.tensors.size() + 1; },
                     .mentions = {"tensor "}});
  damages.push_back({.name = "one_tensor_less",
                     .edit = [](TinyGguf& f) { f.num_tensors = f.tensors.size() - 1; },
                     .mentions = {"tensor "}});
  damages.push_back({.name = "no_tensors",
                     .edit = [](TinyGguf& f) { f.num_tensors = 0; },
                     .mentions = {"'token_embd.weight': is missing"}});
  damages.push_back({.name = "cut_in_the_metadata",
                     .edit_bytes = [](std::string& b) { b.resize(1000); },
                     .mentions = {"reaches beyond the file's 1000 bytes"}});
  damages.push_back({.name = "cut_in_the_tensor_infos",
                     .edit_bytes = [](std::string& b) { b.resize(MakeTinyGguf().Header().size() - 1); },
                     .mentions = {"tensor 'blk.1.ffn_down.weight'", "reaches beyond"}});
  damages.push_back({.name = "cut_behind_the_tensor_infos",
                     .edit_bytes = [](std::string& b) { b.resize(MakeTinyGguf().Header().size()); },
                     .mentions = {"beyond the file's"}});
  damages.push_back({.name = "cut_in_the_data",
                     .edit_bytes = [](std::string& b) { b.resize(b.size() - 33); },
                     .mentions = {"tensor 'blk.1.ffn_down.weight'", "reach beyond"}});
  damages.push_back({.name = "bytes_at_the_end",
                     .edit_bytes = [](std::string& b) { b += std::string(32, '\0'); },
                     .mentions = {"tensor 'blk.1.ffn_down.weight'", "belong to no tensor"}});
  return damages;
}
SCION_GGUF_DAMAGE_CLASS(HeaderAndCounts, HeaderAndCounts());

std::vector<GgufDamage> Metadata() {
  std::vector<GgufDamage> damages;
  const auto set = [&](const std::string& name, const std::string& key, const std::string& value,
                       const std::string& word, StatusCode code = StatusCode::kDataLoss) {
    damages.push_back({.name = name,
                       .edit = [=](TinyGguf& f) { f.Set(key, value); },
                       .code = code,
                       .mentions = {"key '" + key + "'", word}});
  };
  for (uint32_t type : {13u, 14u, 255u, 0x80000000u, 0xffffffffu}) {
    set("type_" + std::to_string(type), "other.u8", GgufValueOf(type, "\x01"), "unknown value type");
    set("array_of_type_" + std::to_string(type), "other.bools", GgufArrayOf(type, 1, "\x01"), "unknown value type");
  }
  set("array_of_arrays", "other.bools", GgufArrayOf(9, 1, GgufRaw(4, 4) + GgufRaw(1, 8) + "\x01"), "an array of arrays",
      StatusCode::kUnimplemented);
  set("bool_of_2", "tokenizer.ggml.add_bos_token", GgufBool(2), "neither 0 nor 1");
  for (uint64_t length : kHuge) {
    const std::string n = std::to_string(length);
    set("string_of_" + n, "general.name", GgufValueOf(8, GgufRaw(length, 8)), "string of length " + n);
    set("strings_of_" + n, "tokenizer.ggml.tokens", GgufArrayOf(8, length, ""), "array of length " + n);
    set("string_in_array_of_" + n, "tokenizer.ggml.merges", GgufArrayOf(8, 1, GgufRaw(length, 8)),
        "element 0: string of length " + n);
    set("floats_of_" + n, "tokenizer.ggml.scores", GgufArrayOf(6, length, ""), "array of length " + n);
    set("bytes_of_" + n, "other.bools", GgufArrayOf(7, length, ""), "array of length " + n);
    damages.push_back({.name = "key_of_" + n,
                       .edit_bytes = [=](std::string& b) { b.replace(24, 8, GgufRaw(length, 8)); },
                       .mentions = {"key 0", "string of length " + n}});
  }
  const auto tail = [&](const std::string& name, const std::string& value) {
    damages.push_back({.name = name,
                       .edit =
                           [=](TinyGguf& f) {
                             f.tensors.clear();
                             f.keys = {{"the_last", value}};
                           },
                       .edit_bytes = [=](std::string& b) { b.resize(24 + 8 + 8 + value.size()); },
                       .mentions = {"key 'the_last'", "reaches beyond"}});
  };
  tail("cut_in_a_type", "\x04");
  tail("cut_in_a_number", GgufU32(1).substr(0, 7));
  tail("cut_in_a_length", GgufText("abc").substr(0, 9));
  tail("cut_in_a_string", GgufText("abc").substr(0, 14));
  tail("cut_in_an_array", GgufI32s({1, 2}).substr(0, 20));
  damages.push_back(
      {.name = "key_without_a_name", .edit = [](TinyGguf& f) { f.keys[1].key = ""; }, .mentions = {"key 1: is empty"}});
  damages.push_back({.name = "key_beyond_the_limit",
                     .edit = [](TinyGguf& f) { f.keys[1].key = std::string(65536, 'k'); },
                     .code = StatusCode::kResourceExhausted,
                     .mentions = {"key 1", "65536 bytes"}});
  for (const std::string key : {"general.architecture", "llama.block_count", "other.none"}) {
    damages.push_back({.name = CaseName("twice_" + key),
                       .edit =
                           [=](TinyGguf& f) {
                             f.keys.push_back({key, GgufU32(2)});
                           },
                       .mentions = {"key '" + key + "': comes twice"}});
  }
  set("string_beyond_the_limit", "general.name", GgufText(std::string(kMaxGgufStringBytes + 1, 'x')),
      "more than the limit", StatusCode::kResourceExhausted);
  set("token_beyond_the_limit", "other.none", GgufTexts({std::string(kMaxGgufStringBytes + 1, 'x')}),
      "element 0: string of 4194305 bytes", StatusCode::kResourceExhausted);
  for (uint32_t alignment : {0u, 1u, 4u, 7u, 1u << 21, 0xffffffffu}) {
    set("alignment_" + std::to_string(alignment), "general.alignment", GgufU32(alignment), "outside [8, 1048576]");
  }
  set("alignment_48", "general.alignment", GgufU32(48), "not a power of two");
  set("alignment_text", "general.alignment", GgufText("32"), "must be an integer");

  // The tokenizer.
  set("tokens_less", "tokenizer.ggml.tokens", GgufTexts({"a"}), "a vocabulary of 1, but tensor 'token_embd.weight'");
  set("tokens_more", "tokenizer.ggml.tokens", GgufTexts(std::vector<std::string>(41)), "a vocabulary of 41");
  set("tokens_of_int32", "tokenizer.ggml.tokens", GgufI32s(std::vector<int32_t>(40)), "an array of int32");
  set("tokens_text", "tokenizer.ggml.tokens", GgufText("a"), "must be an array", StatusCode::kInvalidArgument);
  damages.push_back({.name = "no_tokens",
                     .edit = [](TinyGguf& f) { f.Remove("tokenizer.ggml.tokens"); },
                     .mentions = {"'tokenizer.ggml.tokens': is missing"}});
  set("scores_less", "tokenizer.ggml.scores", GgufF32s(std::vector<float>(39)), "has 39 elements, but");
  set("scores_none", "tokenizer.ggml.scores", GgufF32s({}), "has 0 elements, but");
  set("scores_of_int32", "tokenizer.ggml.scores", GgufI32s(std::vector<int32_t>(40)), "an array of int32");
  std::vector<float> scores(40);
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  set("scores_nan", "tokenizer.ggml.scores", GgufF32s(scores), "element 7 is not finite");
  scores[7] = -std::numeric_limits<float>::infinity();
  set("scores_infinity", "tokenizer.ggml.scores", GgufF32s(scores), "element 7 is not finite");
  set("types_more", "tokenizer.ggml.token_type", GgufI32s(std::vector<int32_t>(41, 1)), "has 41 elements, but");
  set("types_of_float32", "tokenizer.ggml.token_type", GgufF32s(std::vector<float>(40)), "an array of float32");
  std::vector<int32_t> types(40, 1);
  types[39] = 7;
  set("type_7", "tokenizer.ggml.token_type", GgufI32s(types), "element 39 is 7");
  types[39] = -1;
  set("type_negative", "tokenizer.ggml.token_type", GgufI32s(types), "element 39 is -1");
  set("merges_of_int32", "tokenizer.ggml.merges", GgufI32s({1}), "an array of int32");
  set("merges_beyond_the_limit", "tokenizer.ggml.merges",
      GgufArrayOf(8, kMaxGgufArrayStrings, std::string(8 * kMaxGgufArrayStrings, '\0')), "more than the limit",
      StatusCode::kResourceExhausted);
  for (const std::string key : {"bos", "eos", "eot", "eom", "unknown"}) {
    const std::string full = "tokenizer.ggml." + key + "_token_id";
    set(key + "_40", full, GgufU32(40), "is 40, outside [0, 39]", StatusCode::kInvalidArgument);
    set(key + "_negative", full, GgufI32(-1), "is -1, outside [0, 39]", StatusCode::kInvalidArgument);
    set(key + "_float", full, GgufF32(1), "must be an integer", StatusCode::kInvalidArgument);
  }
  set("add_bos_int", "tokenizer.ggml.add_bos_token", GgufU32(1), "must be a bool", StatusCode::kInvalidArgument);
  set("model_int", "tokenizer.ggml.model", GgufU32(1), "must be a string", StatusCode::kInvalidArgument);
  set("template_int", "tokenizer.chat_template", GgufU32(1), "must be a string", StatusCode::kInvalidArgument);
  return damages;
}
SCION_GGUF_DAMAGE_CLASS(Metadata, Metadata());

std::vector<GgufDamage> TensorInfos() {
  std::vector<GgufDamage> damages;
  const auto edit = [&](const std::string& name, const std::string& tensor,
                        const std::function<void(TinyGgufTensor&)>& change, const std::string& word,
                        StatusCode code = StatusCode::kDataLoss) {
    damages.push_back({.name = name,
                       .edit = [=](TinyGguf& f) { change(f.Tensor(tensor)); },
                       .code = code,
                       .mentions = {"tensor '" + tensor + "'", word}});
  };
  const std::string kQ = "blk.0.attn_q.weight";  // Q4_K
  for (const auto& [type, type_name] : std::map<uint32_t, std::string>{{4, "Q4_2"},
                                                                       {9, "Q8_1"},
                                                                       {10, "Q2_K"},
                                                                       {11, "Q3_K"},
                                                                       {15, "Q8_K"},
                                                                       {16, "IQ2_XXS"},
                                                                       {20, "IQ4_NL"},
                                                                       {23, "IQ4_XS"},
                                                                       {24, "I8"},
                                                                       {26, "I32"},
                                                                       {28, "F64"},
                                                                       {31, "Q4_0_4_4"},
                                                                       {34, "TQ1_0"},
                                                                       {39, "MXFP4"},
                                                                       {41, "Q1_0"}}) {
    edit(
        "type_" + type_name, kQ, [type = type](TinyGgufTensor& t) { t.type = type; },
        "type " + type_name + " is not supported", StatusCode::kUnimplemented);
  }
  for (uint32_t type : {42u, 99u, 0x80000000u, 0xffffffffu}) {
    edit(
        "type_" + std::to_string(type), kQ, [=](TinyGgufTensor& t) { t.type = type; },
        "unknown type " + std::to_string(type));
  }
  edit(
      "no_dims", kQ, [](TinyGgufTensor& t) { t.dims = {}; }, "0 dimensions");
  edit(
      "dims_5", kQ,
      [](TinyGgufTensor& t) {
        t.dims = {256, 32, 1, 1, 1};
      },
      "5 dimensions");
  for (uint64_t dim : kHuge) {
    const std::string n = std::to_string(dim);
    edit(
        "rows_" + n, kQ, [=](TinyGgufTensor& t) { t.dims[1] = dim; }, "");
    edit(
        "rows_twice_" + n, kQ,
        [=](TinyGgufTensor& t) {
          t.dims = {256, dim, dim};
        },
        "shape overflows 63 bits");
  }
  const auto reshape = [&](const std::string& name, const std::vector<uint64_t>& dims, const std::string& word) {
    damages.push_back({.name = name,
                       .edit = [=](TinyGguf& f) { f.Tensor(kQ).dims = dims; },
                       .mentions = {"tensor 'model.layers.0.self_attn.q_proj.weight'", word}});
  };
  reshape("dims_1", {256 * 32}, "shape [8192], but the metadata asks for [32, 256]");
  reshape("dims_3", {256, 32, 1}, "shape [1, 32, 256], but the metadata asks for [32, 256]");
  edit(
      "overflow_to_0", kQ,
      [](TinyGgufTensor& t) {
        t.dims = {256, uint64_t{1} << 32, uint64_t{1} << 32};
      },
      "shape overflows 63 bits");
  edit(
      "overflow_behind_a_row", "output_norm.weight",
      [](TinyGgufTensor& t) {
        t.dims = {uint64_t{1} << 62, 4};
      },
      "shape overflows 63 bits");
  edit(
      "bytes_of_64_bits", "output_norm.weight", [](TinyGgufTensor& t) { t.dims[0] = uint64_t{1} << 61; },
      "shape overflows 63 bits");
  edit(
      "dim_0", kQ, [](TinyGgufTensor& t) { t.dims[1] = 0; }, "dimension 1 is 0");
  edit(
      "row_0", kQ, [](TinyGgufTensor& t) { t.dims[0] = 0; }, "dimension 0 is 0");
  edit(
      "row_of_half_a_block", kQ,
      [](TinyGgufTensor& t) {
        t.dims = {128, 64};
      },
      "a row of 128 elements is not a multiple of Q4_K's block of 256");
  edit(
      "row_of_31", "blk.0.attn_k.weight",
      [](TinyGgufTensor& t) {
        t.dims = {31, 16};
      },
      "a row of 31 elements is not a multiple of Q4_0's block of 32");
  edit(
      "offset_1", "output_norm.weight", [](TinyGgufTensor& t) { t.offset = 1; }, "not a multiple of the alignment 32");
  edit(
      "offset_of_the_half_alignment", "output_norm.weight", [](TinyGgufTensor& t) { t.offset = 16; },
      "not a multiple of the alignment 32");
  for (uint64_t offset : kHuge) {
    edit(
        "offset_" + std::to_string(offset), kQ, [=](TinyGgufTensor& t) { t.offset = offset / 32 * 32; },
        "reach beyond the file's");
  }
  damages.push_back({.name = "overlaps_by_offset",
                     .edit = [](TinyGguf& f) { f.Tensor("output_norm.weight").offset = 32; },
                     .mentions = {"tensor 'output_norm.weight': overlaps tensor 'token_embd.weight'"}});
  damages.push_back({.name = "overlaps_by_length",
                     .edit = [](TinyGguf& f) { f.Tensor("token_embd.weight").dims[1] = 41; },
                     .mentions = {"tensor 'output_norm.weight': overlaps tensor 'token_embd.weight'"}});
  damages.push_back({.name = "two_in_one_place",
                     .edit = [](TinyGguf& f) { f.Tensor("output_norm.weight").offset = 0; },
                     .mentions = {"overlaps tensor"}});
  damages.push_back({.name = "hole",
                     .edit = [](TinyGguf& f) { f.Tensor("output_norm.weight").data += std::string(32, 'x'); },
                     .mentions = {"a hole of 32 bytes before it"}});
  damages.push_back({.name = "name_twice",
                     .edit = [](TinyGguf& f) { f.Tensor("output.weight").name = "token_embd.weight"; },
                     .mentions = {"tensor 'token_embd.weight': comes twice"}});
  damages.push_back({.name = "name_empty",
                     .edit = [](TinyGguf& f) { f.Tensor("output.weight").name = ""; },
                     .mentions = {"tensor 2: has no name"}});
  damages.push_back({.name = "name_too_long",
                     .edit = [](TinyGguf& f) { f.Tensor("output.weight").name = std::string(65, 'n'); },
                     .mentions = {"tensor 'nnn", "name is longer than 64 bytes"}});

  // By name: missing, unknown, of a layer or expert that is not there.
  for (const std::string name :
       {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight",
        "blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight",
        "blk.0.ffn_gate.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"}) {
    damages.push_back({.name = CaseName("missing_" + name),
                       .edit = [=](TinyGguf& f) { f.RemoveTensor(name); },
                       .mentions = {"is missing"}});
  }
  const TinyGgufOptions qwen = {.architecture = "qwen3moe", .num_experts = 3};
  for (const std::string name : {"blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight", "blk.0.ffn_gate_inp.weight",
                                 "blk.1.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight"}) {
    damages.push_back({.name = CaseName("qwen_missing_" + name),
                       .edit = [=](TinyGguf& f) { f.RemoveTensor(name); },
                       .mentions = {"is missing"},
                       .options = qwen});
  }
  const auto add = [&](const std::string& name, StatusCode code, const std::string& word,
                       const TinyGgufOptions& options = {}) {
    damages.push_back({.name = CaseName("added_" + name + (options.num_experts > 0 ? "_experts" : "")),
                       .edit = [=](TinyGguf& f) { f.AddTensor(name, {256}, 0); },
                       .code = code,
                       .mentions = {word},
                       .options = options});
  };
  for (const std::string name :
       {"rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.attn_output.bias", "token_types.weight", "output.bias",
        "blk.0.attn_sinks.weight", "blk.0.ffn_up_exps.weight", "blk.00.attn_norm.weight", "blk.0attn_norm.weight",
        "blk.-1.attn_norm.weight", "blk..attn_norm.weight", "blk.0.ffn_gate_shexp.weight"}) {
    add(name, StatusCode::kUnimplemented, "tensor '" + name + "'");
  }
  add("blk.0.attn_q_norm.weight", StatusCode::kUnimplemented, "has no use for it");
  add("blk.0.ffn_gate_inp.weight", StatusCode::kUnimplemented, "has no use for it");
  add("blk.0.ffn_gate.weight", StatusCode::kUnimplemented, "has no use for it", qwen);
  add("blk.2.attn_norm.weight", StatusCode::kDataLoss, "tensor 'blk.2.attn_norm.weight': the model has 2 layers");
  add("blk.2147483648.attn_norm.weight", StatusCode::kUnimplemented, "tensor 'blk.2147483648.attn_norm.weight'");
  add("blk.0.ffn_up.3.weight", StatusCode::kDataLoss, "the model has 3 experts", qwen);
  add("blk.0.ffn_up.2.weight", StatusCode::kDataLoss, "experts.2.up_proj.weight': comes twice", qwen);
  add("blk.0.ffn_up.2.bias", StatusCode::kUnimplemented, "tensor 'blk.0.ffn_up.2.bias'", qwen);
  damages.push_back({.name = "experts_2_of_3",
                     .edit =
                         [](TinyGguf& f) {
                           f.RemoveTensor("blk.0.ffn_up_exps.weight");
                           f.AddTensor("blk.0.ffn_up_exps.weight", {256, 32, 2}, 8);
                         },
                     .mentions = {"tensor 'blk.0.ffn_up_exps.weight': 2 experts, but the model has 3"},
                     .options = qwen});
  damages.push_back({.name = "experts_flat",
                     .edit =
                         [](TinyGguf& f) {
                           f.Tensor("blk.0.ffn_up_exps.weight").dims = {256, 96};
                         },
                     .mentions = {"tensor 'blk.0.ffn_up_exps.weight': 2 dimensions, but 3 are needed"},
                     .options = qwen});
  damages.push_back({.name = "expert_shape",
                     .edit =
                         [](TinyGguf& f) {
                           f.Tensor("blk.0.ffn_down_exps.weight").dims = {256, 32, 3};
                         },
                     .mentions = {"experts.0.down_proj.weight': shape [32, 256], but the metadata asks for [256, 32]"},
                     .options = qwen});

  const auto retype = [&](const std::string& tensor, std::vector<uint64_t> dims, uint32_t type, const std::string& word,
                          const TinyGgufOptions& options = {}) {
    damages.push_back({.name = CaseName("retyped_" + tensor + (options.num_experts > 0 ? "_experts" : "")),
                       .edit =
                           [=](TinyGguf& f) {
                             f.RemoveTensor(tensor);
                             f.AddTensor(tensor, dims, type);
                           },
                       .mentions = {word},
                       .options = options});
  };
  retype("output_norm.weight", {256}, 8, "'model.norm.weight': dtype Q8_0, but F32, F16 or BF16 is needed");
  retype("blk.1.attn_norm.weight", {256}, 12, "input_layernorm.weight': dtype Q4_K, but");
  retype("blk.0.ffn_gate_inp.weight", {256, 3}, 8, "mlp.gate.weight': dtype Q8_0, but", qwen);
  retype("blk.0.attn_k.weight", {256, 32}, 8, "self_attn.k_proj.weight': shape [32, 256], but the metadata asks for");
  retype("blk.0.ffn_down.weight", {256, 32}, 8, "mlp.down_proj.weight': shape [32, 256]");
  retype("blk.0.attn_q_norm.weight", {32}, 0, "self_attn.q_norm.weight': shape [32]", qwen);
  retype("output.weight", {256, 41}, 8, "lm_head.weight': shape [41, 256]");
  return damages;
}
SCION_GGUF_DAMAGE_CLASS(TensorInfos, TensorInfos());

std::vector<GgufDamage> Spec() {
  std::vector<GgufDamage> damages;
  const auto set = [&](const std::string& name, const std::string& key, const std::string& value,
                       const std::string& word, StatusCode code, const TinyGgufOptions& options = {}) {
    damages.push_back({.name = name,
                       .edit = [=](TinyGguf& f) { f.Set(key, value); },
                       .code = code,
                       .mentions = {"key '" + key + "'", word},
                       .options = options});
  };
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument, kLacking = StatusCode::kUnimplemented;
  const TinyGgufOptions moe = {.num_experts = 3}, qwen = {.architecture = "qwen3moe", .num_experts = 3};
  const auto sizes = [&](const std::string& arch, const std::vector<std::string>& keys,
                         const TinyGgufOptions& options) {
    for (const std::string& rest : keys) {
      const std::string key = arch + "." + rest;
      const std::string name = CaseName(key + (options.num_experts > 0 ? "_experts" : ""));
      set(name + "_0", key, GgufU32(0), "is 0, outside [1", kInvalid, options);
      set(name + "_negative", key, GgufI32(-4), "is -4, outside [1", kInvalid, options);
      set(name + "_huge", key, GgufU64(uint64_t{1} << 63), "outside [1", kInvalid, options);
      set(name + "_text", key, GgufText("4"), "must be an integer", kInvalid, options);
      set(name + "_float", key, GgufF32(4), "must be an integer", kInvalid, options);
      set(name + "_array", key, GgufI32s({4, 4}), "is an array", kLacking, options);
      // Those that have a default are no damage when they are absent.
      if (rest.ends_with("_kv") || rest.ends_with("_length_") || rest == "rope.dimension_count") continue;
      damages.push_back({.name = name + "_missing",
                         .edit = [=](TinyGguf& f) { f.Remove(key); },
                         .code = kInvalid,
                         .mentions = {"key '" + key + "': is missing"},
                         .options = options});
    }
  };
  sizes("llama",
        {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
         "attention.head_count_kv", "rope.dimension_count"},
        {});
  sizes("llama", {"expert_used_count"}, moe);
  sizes("qwen3moe", {"expert_used_count", "expert_feed_forward_length"}, qwen);

  for (const std::string arch : {"gemma3", "qwen2moe", "", "Llama"}) {
    set(CaseName("architecture_" + arch), "general.architecture", GgufText(arch),
        "is '" + arch + "'; this build knows 'llama' and 'qwen3moe'", kLacking);
  }
  set("architecture_int", "general.architecture", GgufU32(1), "must be a string", kInvalid);
  damages.push_back({.name = "architecture_missing",
                     .edit = [](TinyGguf& f) { f.Remove("general.architecture"); },
                     .code = kInvalid,
                     .mentions = {"key 'general.architecture': is missing"}});
  set("adapter", "general.type", GgufText("adapter"), "only 'model' is supported", kLacking);
  set("split", "split.count", GgufValueOf(2, GgufRaw(2, 2)), "several files", kLacking);
  for (const auto& [name, value] : std::map<std::string, std::string>{
           {"0", GgufF32(0)}, {"1", GgufF32(1)}, {"negative", GgufF32(-1e-5f)}, {"huge", GgufF64(1e300)}}) {
    set("eps_" + name, "llama.attention.layer_norm_rms_epsilon", value, "outside [1e-12, 1)", kInvalid);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  set("eps_nan", "llama.attention.layer_norm_rms_epsilon", GgufF32(nan), "not finite", kInvalid);
  set("eps_text", "llama.attention.layer_norm_rms_epsilon", GgufText("1e-5"), "must be a number", kInvalid);
  set("base_0", "llama.rope.freq_base", GgufF32(0.5f), "outside [1, 1e12]", kInvalid);
  set("base_huge", "llama.rope.freq_base", GgufF32(1e13f), "outside [1, 1e12]", kInvalid);
  set("base_infinity", "llama.rope.freq_base", GgufF32(infinity), "not finite", kInvalid);
  set("vocab_size_41", "llama.vocab_size", GgufU32(41), "a vocabulary of 41", StatusCode::kDataLoss);
  set("heads_3", "llama.attention.head_count_kv", GgufU32(3), "", kLacking);
  damages.back().mentions = {"key 'llama.attention.head_count'", "not a multiple of 'llama.attention.head_count_kv' 3"};
  set("head_dim_24", "llama.attention.key_length", GgufU32(24), "multiples of 16 up to 256", kLacking);
  set("head_dim_272", "llama.attention.key_length", GgufU32(272), "multiples of 16 up to 256", kLacking);
  set("values_of_32", "llama.attention.value_length", GgufU32(32), "values of 32 beside keys of 16", kLacking);
  set("rope_half", "llama.rope.dimension_count", GgufU32(8), "only the whole head, 16, is supported", kLacking);
  set("heads_too_many", "llama.attention.head_count", GgufU32(1 << 17), "are more than 131072", kInvalid);
  for (const std::string type : {"linear", "yarn", "longrope", "NONE", ""}) {
    set(CaseName("rope_scaling_" + type), "llama.rope.scaling.type", GgufText(type), "only 'none' is supported",
        kLacking);
  }
  set("rope_scaling_factor", "llama.rope.scaling.factor", GgufF32(2), "does not support", kLacking);
  set("rope_scale_linear", "llama.rope.scale_linear", GgufF32(2), "does not support", kLacking);
  for (const std::string rest :
       {"attention.sliding_window", "attention.max_alibi_bias", "attention.clamp_kqv", "attention.scale", "logit_scale",
        "residual_scale", "embedding_scale", "final_logit_softcapping", "attn_logit_softcapping",
        "leading_dense_block_count", "expert_shared_count", "expert_shared_feed_forward_length", "expert_weights_scale",
        "expert_gating_func", "expert_group_count", "interleave_moe_layer_step"}) {
    set(CaseName("feature_" + rest), "llama." + rest, GgufU32(2), "is 2, which this engine does not support", kLacking);
  }
  set("feature_text", "llama.logit_scale", GgufText("2"), "must be a number", kInvalid);
  set("not_causal", "llama.attention.causal", GgufBool(0), "is false", kLacking);
  set("parallel_residual", "llama.use_parallel_residual", GgufBool(1), "is true", kLacking);
  set("weights_not_normed", "llama.expert_weights_norm", GgufBool(0), "is false", kLacking, moe);
  set("experts_4", "llama.expert_count", GgufU32(4), "", StatusCode::kDataLoss, moe);
  damages.back().mentions = {"3 experts, but the model has 4"};
  set("experts_4097", "llama.expert_count", GgufU32(4097), "outside [0, 4096]", kInvalid, moe);
  set("experts_used_4_of_3", "llama.expert_used_count", GgufU32(4), "is 4, outside [1, 3]", kInvalid, moe);
  set("qwen_experts_0", "qwen3moe.expert_count", GgufU32(0), "is 0", kInvalid, qwen);
  damages.push_back({.name = "qwen_experts_missing",
                     .edit = [](TinyGguf& f) { f.Remove("qwen3moe.expert_count"); },
                     .code = kInvalid,
                     .mentions = {"key 'qwen3moe.expert_count': is missing"},
                     .options = qwen});
  set("layers_3", "llama.block_count", GgufU32(3), "", StatusCode::kDataLoss);
  damages.back().mentions = {"'model.layers.2.input_layernorm.weight' is missing"};
  set("layers_1", "llama.block_count", GgufU32(1), "", StatusCode::kDataLoss);
  damages.back().mentions = {"tensor 'blk.1.attn_norm.weight': the model has 1 layers"};
  set("hidden_512", "llama.embedding_length", GgufU32(512), "", StatusCode::kDataLoss);
  damages.back().mentions = {"'model.embed_tokens.weight': shape [40, 256], but the metadata asks for [40, 512]"};
  return damages;
}
SCION_GGUF_DAMAGE_CLASS(Spec, Spec());

}  // namespace
}  // namespace scion::test
