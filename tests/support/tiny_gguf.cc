#include "tests/support/tiny_gguf.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

namespace scion::test {
namespace {

std::string Padded(std::string bytes, uint64_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  return bytes;
}

}  // namespace

std::string GgufRaw(uint64_t v, int bytes) {
  std::string raw;
  for (int i = 0; i < bytes; ++i) raw += static_cast<char>(v >> (8 * i));
  return raw;
}
std::string GgufRawText(std::string_view v) { return GgufRaw(v.size(), 8).append(v); }
std::string GgufValueOf(uint32_t type, std::string_view bytes) { return GgufRaw(type, 4).append(bytes); }
std::string GgufArrayOf(uint32_t type, uint64_t count, std::string_view bytes) {
  return GgufValueOf(9, GgufRaw(type, 4) + GgufRaw(count, 8).append(bytes));
}
std::string GgufU32(uint32_t v) { return GgufValueOf(4, GgufRaw(v, 4)); }
std::string GgufI32(int32_t v) { return GgufValueOf(5, GgufRaw(static_cast<uint32_t>(v), 4)); }
std::string GgufU64(uint64_t v) { return GgufValueOf(10, GgufRaw(v, 8)); }
std::string GgufI64(int64_t v) { return GgufValueOf(11, GgufRaw(static_cast<uint64_t>(v), 8)); }
std::string GgufF32(float v) { return GgufValueOf(6, GgufRaw(std::bit_cast<uint32_t>(v), 4)); }
std::string GgufF64(double v) { return GgufValueOf(12, GgufRaw(std::bit_cast<uint64_t>(v), 8)); }
std::string GgufBool(uint8_t v) { return GgufValueOf(7, GgufRaw(v, 1)); }
std::string GgufText(std::string_view v) { return GgufValueOf(8, GgufRawText(v)); }
std::string GgufTexts(const std::vector<std::string>& v) {
  std::string bytes;
  for (const std::string& text : v) bytes += GgufRawText(text);
  return GgufArrayOf(8, v.size(), bytes);
}
std::string GgufF32s(const std::vector<float>& v) {
  std::string bytes;
  for (float f : v) bytes += GgufRaw(std::bit_cast<uint32_t>(f), 4);
  return GgufArrayOf(6, v.size(), bytes);
}
std::string GgufI32s(const std::vector<int32_t>& v) {
  std::string bytes;
  for (int32_t i : v) bytes += GgufRaw(static_cast<uint32_t>(i), 4);
  return GgufArrayOf(5, v.size(), bytes);
}

uint64_t TinyGgufBytes(const std::vector<uint64_t>& dims, uint32_t type) {
  uint64_t block = 1, bytes = 0;
  switch (type) {
    case 0:
      bytes = 4;
      break;  // F32
    case 1:
      bytes = 2;
      break;  // F16
    case 2:
      block = 32, bytes = 18;
      break;  // Q4_0
    case 3:
      block = 32, bytes = 20;
      break;  // Q4_1
    case 6:
      block = 32, bytes = 22;
      break;  // Q5_0
    case 7:
      block = 32, bytes = 24;
      break;  // Q5_1
    case 8:
      block = 32, bytes = 34;
      break;  // Q8_0
    case 12:
      block = 256, bytes = 144;
      break;  // Q4_K
    case 13:
      block = 256, bytes = 176;
      break;  // Q5_K
    case 14:
      block = 256, bytes = 210;
      break;  // Q6_K
    case 30:
      bytes = 2;
      break;  // BF16
    default:
      break;
  }
  bytes *= dims[0] / block;
  for (size_t d = 1; d < dims.size(); ++d) bytes *= dims[d];
  return bytes;
}

void TinyGguf::Set(const std::string& key, const std::string& value) {
  const auto it = std::find_if(keys.begin(), keys.end(), [&](const TinyGgufKey& k) { return k.key == key; });
  if (it == keys.end()) {
    keys.push_back({key, value});
  } else {
    it->value = value;
  }
}

void TinyGguf::Remove(const std::string& key) {
  std::erase_if(keys, [&](const TinyGgufKey& k) { return k.key == key; });
}

TinyGgufTensor& TinyGguf::Tensor(const std::string& name) {
  for (TinyGgufTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  std::fprintf(stderr, "no tensor %s\n", name.c_str());
  std::abort();
}

void TinyGguf::RemoveTensor(const std::string& name) {
  std::erase_if(tensors, [&](const TinyGgufTensor& t) { return t.name == name; });
}

void TinyGguf::AddTensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type) {
  std::mt19937_64 random(tensors.size() + 1);
  std::string data(TinyGgufBytes(dims, type), '\0');
  for (char& c : data) c = static_cast<char>(random());
  tensors.push_back({name, std::move(dims), type, std::move(data), std::nullopt});
}

std::string TinyGguf::Header() const {
  std::string bytes = magic + GgufRaw(version, 4) + GgufRaw(num_tensors.value_or(tensors.size()), 8) +
                      GgufRaw(num_keys.value_or(keys.size()), 8);
  for (const TinyGgufKey& key : keys) bytes += GgufRawText(key.key) + key.value;
  uint64_t offset = 0;
  for (const TinyGgufTensor& tensor : tensors) {
    bytes += GgufRawText(tensor.name) + GgufRaw(tensor.dims.size(), 4);
    for (uint64_t dim : tensor.dims) bytes += GgufRaw(dim, 8);
    bytes += GgufRaw(tensor.type, 4) + GgufRaw(tensor.offset.value_or(offset), 8);
    offset = (offset + tensor.data.size() + alignment - 1) / alignment * alignment;
  }
  return bytes;
}

std::string TinyGguf::Bytes() const {
  std::string bytes = Padded(Header(), alignment);
  for (const TinyGgufTensor& tensor : tensors) bytes = Padded(std::move(bytes) + tensor.data, alignment);
  return bytes;
}

TinyGguf MakeTinyGguf(const TinyGgufOptions& options) {
  constexpr uint64_t kHidden = 256, kRows = 32, kHeadDim = 16, kVocab = 40;
  constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4K = 12, kQ5K = 13,
                     kQ6K = 14, kBF16 = 30;
  const bool is_qwen = options.architecture == "qwen3moe";
  const std::string arch = options.architecture + ".";
  TinyGguf file;
  file.Set("general.architecture", GgufText(options.architecture));
  file.Set("general.name", GgufText("tiny"));
  file.Set(arch + "context_length", GgufU32(128));
  file.Set(arch + "embedding_length", GgufU32(kHidden));
  file.Set(arch + "block_count", GgufU32(2));
  file.Set(arch + "feed_forward_length", GgufU32(is_qwen ? 999 : kRows));
  file.Set(arch + "attention.head_count", GgufU32(2));
  file.Set(arch + "attention.head_count_kv", GgufU32(1));
  file.Set(arch + "attention.key_length", GgufU32(kHeadDim));
  file.Set(arch + "attention.value_length", GgufU32(kHeadDim));
  file.Set(arch + "attention.layer_norm_rms_epsilon", GgufF32(1e-5f));
  file.Set(arch + "rope.dimension_count", GgufU32(kHeadDim));
  file.Set(arch + "rope.freq_base", GgufF32(500000.0f));
  if (options.num_experts > 0) {
    file.Set(arch + "expert_count", GgufU32(static_cast<uint32_t>(options.num_experts)));
    file.Set(arch + "expert_used_count", GgufU32(1));
    if (is_qwen) file.Set(arch + "expert_feed_forward_length", GgufU32(kRows));
  }
  if (options.tokenizer) {
    std::vector<std::string> tokens;
    for (uint64_t t = 0; t < kVocab; ++t) tokens.push_back("token" + std::to_string(t));
    file.Set("tokenizer.ggml.model", GgufText("gpt2"));
    file.Set("tokenizer.ggml.pre", GgufText("qwen2"));
    file.Set("tokenizer.ggml.tokens", GgufTexts(tokens));
    file.Set("tokenizer.ggml.scores", GgufF32s(std::vector<float>(kVocab, -1.5f)));
    file.Set("tokenizer.ggml.token_type", GgufI32s(std::vector<int32_t>(kVocab, 1)));
    file.Set("tokenizer.ggml.merges", GgufTexts({"a b", "ab c"}));
    file.Set("tokenizer.ggml.bos_token_id", GgufU32(1));
    file.Set("tokenizer.ggml.eos_token_id", GgufU32(2));
    file.Set("tokenizer.ggml.eot_token_id", GgufU32(3));
    file.Set("tokenizer.ggml.eom_token_id", GgufU32(2));
    file.Set("tokenizer.ggml.add_bos_token", GgufBool(1));
    file.Set("tokenizer.chat_template", GgufText("{{ messages }}"));
  }
  // Kinds of values that nobody asks for.
  file.Set("other.u8", GgufValueOf(0, "\x01"));
  file.Set("other.i8", GgufValueOf(1, "\xff"));
  file.Set("other.u16", GgufValueOf(2, GgufRaw(2, 2)));
  file.Set("other.i16", GgufValueOf(3, GgufRaw(3, 2)));
  file.Set("other.u64", GgufU64(~uint64_t{0}));
  file.Set("other.i64", GgufI64(INT64_MIN));
  file.Set("other.f64", GgufF64(0.5));
  file.Set("other.bools", GgufArrayOf(7, 3, std::string_view("\0\1\0", 3)));
  file.Set("other.none", GgufTexts({}));

  file.AddTensor("token_embd.weight", {kHidden, kVocab}, kQ6K);
  file.AddTensor("output_norm.weight", {kHidden}, kF32);
  if (!options.tied) file.AddTensor("output.weight", {kHidden, kVocab}, kQ5K);
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    const bool first = layer == "blk.0.";
    file.AddTensor(layer + "attn_norm.weight", {kHidden}, kF32);
    file.AddTensor(layer + "ffn_norm.weight", {kHidden}, first ? kF16 : kBF16);
    file.AddTensor(layer + "attn_q.weight", {kHidden, 2 * kHeadDim}, first ? kQ4K : kQ8_0);
    file.AddTensor(layer + "attn_k.weight", {kHidden, kHeadDim}, first ? kQ4_0 : kQ4_1);
    file.AddTensor(layer + "attn_v.weight", {kHidden, kHeadDim}, first ? kQ5_0 : kQ5_1);
    file.AddTensor(layer + "attn_output.weight", {2 * kHeadDim, kHidden}, first ? kBF16 : kF16);
    if (is_qwen) {
      file.AddTensor(layer + "attn_q_norm.weight", {kHeadDim}, kF32);
      file.AddTensor(layer + "attn_k_norm.weight", {kHeadDim}, kF32);
    }
    const uint64_t experts = static_cast<uint64_t>(options.num_experts);
    if (experts > 0) file.AddTensor(layer + "ffn_gate_inp.weight", {kHidden, experts}, kF32);
    for (const std::string projection : {"gate", "up", "down"}) {
      const std::string prefix = layer + "ffn_" + projection;
      std::vector<uint64_t> dims =
          projection == "down" ? std::vector<uint64_t>{kRows, kHidden} : std::vector<uint64_t>{kHidden, kRows};
      const uint32_t type = projection == "down" ? kQ8_0 : projection == "up" ? kQ4K : kF32;
      if (experts == 0) {
        file.AddTensor(prefix + ".weight", dims, type);
      } else if (options.experts_apart) {
        for (uint64_t e = 0; e < experts; ++e) file.AddTensor(prefix + "." + std::to_string(e) + ".weight", dims, type);
      } else {
        dims.push_back(experts);
        file.AddTensor(prefix + "_exps.weight", dims, type);
      }
    }
  }
  return file;
}

}  // namespace scion::test
