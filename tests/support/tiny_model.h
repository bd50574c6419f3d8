// Tiny random models for tests, in memory and on disk. The same options give the same bytes on every machine.
//
// The writer shares no code with the reader under test, but for the lock's serialisation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/dtype.h"

namespace scion::test {

struct TinyDomain {
  std::string name;
  int num_experts = 0;
};

struct TinyModelOptions {
  // "scion"; or "llama": no sparse layers, no domains, one file model.safetensors; or "qwen3_moe" and "mixtral", which
  // are as "llama" but have num_experts experts of moe_intermediate_size behind a gate in every layer.
  std::string model_type = "scion";
  int vocab_size = 97;
  int hidden_size = 32;
  int intermediate_size = 48;
  int moe_intermediate_size = 40;
  int num_layers = 3;
  std::vector<int> sparse_layers = {1, 2};
  int num_heads = 2;
  int num_kv_heads = 1;
  int head_dim = 16;
  int num_experts_per_tok = 1;
  bool route_weights = false;  // tensors "route_weight", random in [0, 1)
  std::vector<TinyDomain> domains = {{"alpha", 3}, {"beta", 2}};
  std::string default_domain = "alpha";
  int num_experts = 4;         // behind a gate
  DType dtype = DType::kBF16;  // kF32, kBF16 or kF16
  // Matrices whose rows such blocks fill are quantised: random blocks, stored as U8. Embedding and head of a kQ4_0
  // model are kQ8_0.
  std::optional<DType> blocks = {};
  bool tie_word_embeddings = true;
  int max_position_embeddings = 128;
  int bos_token_id = 0;
  int eos_token_id = 1;
  uint64_t seed = 1;
  bool with_index = true;
  bool with_lock = false;
};

struct TinyTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string data;
  std::optional<DType> blocks = {};  // of these, shape being in bytes and dtype kU8
};

struct TinyFile {
  std::string path;  // "trunk.safetensors", "domains/alpha.safetensors"
  std::vector<TinyTensor> tensors;
};

struct TinyModel {
  nlohmann::ordered_json config;
  nlohmann::ordered_json generation_config;
  std::vector<TinyFile> files;  // the trunk first, then the domains in order
  bool with_index = true;
  bool with_lock = false;

  // The file or tensor of that name; aborts the test program if there is none.
  TinyFile& File(std::string_view path);
  TinyTensor& Tensor(std::string_view name);
};

TinyModel MakeTinyModel(const TinyModelOptions& options = {});

// A safetensors file: with the header that the tensors deserve, or with any other.
nlohmann::ordered_json SafetensorsHeader(const std::vector<TinyTensor>& tensors);
std::string SafetensorsData(const std::vector<TinyTensor>& tensors);
std::string SafetensorsBytes(std::string_view header, std::string_view data);
std::string SafetensorsBytes(const std::vector<TinyTensor>& tensors);

// Writes config.json, generation_config.json, the data files and, if the model says so, index and lock.
void WriteTinyModel(const TinyModel& model, const std::filesystem::path& directory);
// Writes (again) scion.lock.json for what lies in the directory.
void WriteTinyLock(const TinyModel& model, const std::filesystem::path& directory);

std::string ReadBytes(const std::filesystem::path& path);
void WriteBytes(const std::filesystem::path& path, std::string_view bytes);

// A directory of its own for one test, removed with all it holds at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace scion::test
