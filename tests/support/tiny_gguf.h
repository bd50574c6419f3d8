// Tiny GGUF files for tests, built byte by byte. The same options give the same bytes on every machine.
//
// Every part can be replaced by what no writer would write. Shares no code with the reader under test.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace scion::test {

// A value of the metadata as the file has it: its type, then the bytes.
std::string GgufU32(uint32_t v);
std::string GgufI32(int32_t v);
std::string GgufU64(uint64_t v);
std::string GgufI64(int64_t v);
std::string GgufF32(float v);
std::string GgufF64(double v);
std::string GgufBool(uint8_t v);
std::string GgufText(std::string_view v);
std::string GgufTexts(const std::vector<std::string>& v);
std::string GgufF32s(const std::vector<float>& v);
std::string GgufI32s(const std::vector<int32_t>& v);
// Of any type, count and bytes.
std::string GgufArrayOf(uint32_t type, uint64_t count, std::string_view bytes);
std::string GgufValueOf(uint32_t type, std::string_view bytes);
// The bytes of a number or of a string (length and characters), without a type.
std::string GgufRaw(uint64_t v, int bytes);
std::string GgufRawText(std::string_view v);

struct TinyGgufKey {
  std::string key;
  std::string value;
};

struct TinyGgufTensor {
  std::string name;
  std::vector<uint64_t> dims;      // in the file's order: the row's length first
  uint32_t type = 0;               // the file's number
  std::string data;                // as long as dims and type ask for, when it is made
  std::optional<uint64_t> offset;  // else where the data lies
};

struct TinyGguf {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> num_tensors, num_keys;  // else as many as there are
  uint64_t alignment = 32;
  std::vector<TinyGgufKey> keys;
  std::vector<TinyGgufTensor> tensors;

  // Adds or replaces.
  void Set(const std::string& key, const std::string& value);
  void Remove(const std::string& key);
  // Aborts the test program if there is none.
  TinyGgufTensor& Tensor(const std::string& name);
  void RemoveTensor(const std::string& name);
  void AddTensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type);

  std::string Header() const;  // up to the padding before the data
  std::string Bytes() const;
};

struct TinyGgufOptions {
  std::string architecture = "llama";  // or "qwen3moe"
  int num_experts = 0;
  bool experts_apart = false;  // "ffn_up.0.weight", the older form
  bool tied = false;
  bool tokenizer = true;
};

// Hidden size 256, 2 layers, 2 heads of 16 on 1, vocabulary of 40; every supported type occurs. The data are random
// bytes.
TinyGguf MakeTinyGguf(const TinyGgufOptions& options = {});

// Bytes of a tensor of a supported type; 0 for others.
uint64_t TinyGgufBytes(const std::vector<uint64_t>& dims, uint32_t type);

}  // namespace scion::test
