#include "tests/support/tiny_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <utility>

#include "engine/base/sha256.h"
#include "engine/model/lock_file.h"

namespace scion::test {
namespace fs = std::filesystem;
namespace {

using OrderedJson = nlohmann::ordered_json;

class Builder {
 public:
  explicit Builder(const TinyModelOptions& options) : o_(options), random_(options.seed) {}

  TinyFile Trunk() {
    TinyFile file{o_.model_type == "scion" ? "trunk.safetensors" : "model.safetensors", {}};
    const std::optional<DType> head_blocks = o_.blocks == DType::kQ4_0 ? DType::kQ8_0 : o_.blocks;
    file.tensors.push_back(Matrix("model.embed_tokens.weight", o_.vocab_size, o_.hidden_size, 1, head_blocks));
    for (int l = 0; l < o_.num_layers; ++l) {
      const std::string p = "model.layers." + std::to_string(l) + ".";
      const int q_rows = o_.num_heads * o_.head_dim, kv_rows = o_.num_kv_heads * o_.head_dim;
      file.tensors.push_back(Floats(p + "input_layernorm.weight", {o_.hidden_size}, 1, 0.2));
      file.tensors.push_back(Matrix(p + "self_attn.q_proj.weight", q_rows, o_.hidden_size));
      file.tensors.push_back(Matrix(p + "self_attn.k_proj.weight", kv_rows, o_.hidden_size));
      file.tensors.push_back(Matrix(p + "self_attn.v_proj.weight", kv_rows, o_.hidden_size));
      file.tensors.push_back(Matrix(p + "self_attn.o_proj.weight", o_.hidden_size, q_rows));
      file.tensors.push_back(Floats(p + "post_attention_layernorm.weight", {o_.hidden_size}, 1, 0.2));
      if (o_.model_type == "qwen3_moe") {
        file.tensors.push_back(Floats(p + "self_attn.q_norm.weight", {o_.head_dim}, 1, 0.2));
        file.tensors.push_back(Floats(p + "self_attn.k_norm.weight", {o_.head_dim}, 1, 0.2));
      }
      if (IsGated()) {
        AddGated(file, p);
      } else if (!IsSparse(l)) {
        AddFfn(file, p + "mlp.", o_.intermediate_size);
      }
    }
    file.tensors.push_back(Floats("model.norm.weight", {o_.hidden_size}, 1, 0.2));
    if (!o_.tie_word_embeddings) {
      const double spread = 2 / std::sqrt(static_cast<double>(o_.hidden_size));
      file.tensors.push_back(Matrix("lm_head.weight", o_.vocab_size, o_.hidden_size, spread, head_blocks));
    }
    return file;
  }

  TinyFile Domain(const TinyDomain& domain) {
    TinyFile file{"domains/" + domain.name + ".safetensors", {}};
    for (int l : o_.sparse_layers) {
      const std::string p = "model.layers." + std::to_string(l) + ".mlp.domains." + domain.name + ".";
      for (int e = 0; e < domain.num_experts; ++e) {
        AddFfn(file, p + "experts." + std::to_string(e) + ".", o_.moe_intermediate_size);
      }
      file.tensors.push_back(Route(p + "route", domain.num_experts));
      if (o_.route_weights) {
        TinyTensor weight{p + "route_weight", DType::kF32, {o_.num_experts_per_tok}, {}};
        for (int k = 0; k < o_.num_experts_per_tok; ++k) AppendFloat(weight, static_cast<float>(Uniform()));
        file.tensors.push_back(std::move(weight));
      }
    }
    return file;
  }

 private:
  bool IsGated() const { return o_.model_type == "qwen3_moe" || o_.model_type == "mixtral"; }

  bool IsSparse(int layer) const {
    return o_.model_type == "scion" &&
           std::find(o_.sparse_layers.begin(), o_.sparse_layers.end(), layer) != o_.sparse_layers.end();
  }

  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }  // [0, 1)

  // center +- spread
  TinyTensor Floats(std::string name, std::vector<int64_t> shape, double center, double spread) {
    TinyTensor tensor{std::move(name), o_.dtype, std::move(shape), {}};
    int64_t count = 1;
    for (int64_t dim : tensor.shape) count *= dim;
    for (int64_t i = 0; i < count; ++i) AppendFloat(tensor, static_cast<float>(center + spread * (2 * Uniform() - 1)));
    return tensor;
  }

  TinyTensor Matrix(std::string name, int rows, int cols) {
    return Matrix(std::move(name), rows, cols, 2 / std::sqrt(static_cast<double>(cols)), o_.blocks);
  }

  TinyTensor Matrix(std::string name, int rows, int cols, double spread, std::optional<DType> blocks) {
    if (!blocks.has_value() || cols % DTypeBlockElements(*blocks) != 0) {
      return Floats(std::move(name), {rows, cols}, 0, spread);
    }
    const int num_blocks = rows * (cols / DTypeBlockElements(*blocks));
    TinyTensor tensor{std::move(name), DType::kU8, {rows, 0}, {}, blocks};
    for (int b = 0; b < num_blocks; ++b) tensor.data += RandomBlock(*blocks, spread);
    tensor.shape[1] = static_cast<int64_t>(tensor.data.size()) / rows;
    return tensor;
  }

  // Any bytes are codes; the halves that scale them are such that no weight is much larger than `spread`.
  std::string RandomBlock(DType type, double spread) {
    struct Layout {
      DType type;
      std::vector<size_t> scales;  // where they lie in the block
      double largest_code;         // with the sub-block's scale, for the K types
    };
    static const Layout kLayouts[] = {{DType::kQ8_0, {0}, 127},       {DType::kQ4_0, {0}, 8},
                                      {DType::kQ4_1, {0, 2}, 15},     {DType::kQ5_0, {0}, 16},
                                      {DType::kQ5_1, {0, 2}, 31},     {DType::kQ4K, {0, 2}, 63 * 15},
                                      {DType::kQ5K, {0, 2}, 63 * 31}, {DType::kQ6K, {208}, 127 * 32}};
    std::string block(DTypeBytes(type), '\0');
    for (char& c : block) c = static_cast<char>(random_());
    for (const Layout& layout : kLayouts) {
      if (layout.type != type) continue;
      for (size_t place : layout.scales) {
        const uint16_t scale = F32ToF16(static_cast<float>(spread / layout.largest_code * (0.25 + 0.75 * Uniform())));
        std::memcpy(&block[place], &scale, sizeof(scale));
      }
    }
    return block;
  }

  // The gate and its experts.
  void AddGated(TinyFile& file, const std::string& prefix) {
    const bool is_mixtral = o_.model_type == "mixtral";
    const std::string moe = prefix + (is_mixtral ? "block_sparse_moe." : "mlp.");
    file.tensors.push_back(Floats(moe + "gate.weight", {o_.num_experts, o_.hidden_size}, 0, 1));
    for (int e = 0; e < o_.num_experts; ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      if (is_mixtral) {
        AddFfn(file, expert, o_.moe_intermediate_size, {"w1", "w3", "w2"});
      } else {
        AddFfn(file, expert, o_.moe_intermediate_size);
      }
    }
  }

  void AddFfn(TinyFile& file, const std::string& prefix, int intermediate_size,
              const std::array<std::string, 3>& names = {"gate_proj", "up_proj", "down_proj"}) {
    file.tensors.push_back(Matrix(prefix + names[0] + ".weight", intermediate_size, o_.hidden_size));
    file.tensors.push_back(Matrix(prefix + names[1] + ".weight", intermediate_size, o_.hidden_size));
    file.tensors.push_back(Matrix(prefix + names[2] + ".weight", o_.hidden_size, intermediate_size));
  }

  TinyTensor Route(std::string name, int num_experts) {
    TinyTensor route{std::move(name), DType::kI32, {o_.num_experts_per_tok, o_.vocab_size}, {}};
    for (int i = 0; i < o_.num_experts_per_tok * o_.vocab_size; ++i) {
      const int32_t expert = static_cast<int32_t>(random_() % static_cast<uint64_t>(num_experts));
      route.data.append(reinterpret_cast<const char*>(&expert), sizeof(expert));
    }
    return route;
  }

  static void AppendFloat(TinyTensor& tensor, float value) {
    if (tensor.dtype == DType::kF32) {
      tensor.data.append(reinterpret_cast<const char*>(&value), sizeof(value));
      return;
    }
    uint16_t half = F32ToBf16(value);
    if (tensor.dtype == DType::kF16) {
      const _Float16 f16 = static_cast<_Float16>(value);
      std::memcpy(&half, &f16, sizeof(half));
    }
    tensor.data.append(reinterpret_cast<const char*>(&half), sizeof(half));
  }

  const TinyModelOptions& o_;
  std::mt19937_64 random_;
};

const char* Architecture(std::string_view model_type) {
  if (model_type == "scion") return "ScionForCausalLM";
  if (model_type == "qwen3_moe") return "Qwen3MoeForCausalLM";
  return model_type == "mixtral" ? "MixtralForCausalLM" : "LlamaForCausalLM";
}

OrderedJson Config(const TinyModelOptions& o) {
  const bool is_scion = o.model_type == "scion";
  const char* dtype = o.dtype == DType::kF32 ? "float32" : o.dtype == DType::kF16 ? "float16" : "bfloat16";
  OrderedJson config = {
      {"model_type", o.model_type},
      {"architectures", {Architecture(o.model_type)}},
      {"vocab_size", o.vocab_size},
      {"hidden_size", o.hidden_size},
      {"intermediate_size", o.intermediate_size},
      {"num_hidden_layers", o.num_layers},
      {"num_attention_heads", o.num_heads},
      {"num_key_value_heads", o.num_kv_heads},
      {"head_dim", o.head_dim},
      {"hidden_act", "silu"},
      {"rms_norm_eps", 1e-5},
      {"max_position_embeddings", o.max_position_embeddings},
      {"tie_word_embeddings", o.tie_word_embeddings},
      {"bos_token_id", o.bos_token_id},
      {"eos_token_id", o.eos_token_id},
      {"rope_theta", 10000.0},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}},
      {"torch_dtype", dtype},
      {"dtype", dtype},
  };
  if (o.model_type == "qwen3_moe") {
    config["moe_intermediate_size"] = o.moe_intermediate_size;
    config["num_experts"] = o.num_experts;
    config["num_experts_per_tok"] = o.num_experts_per_tok;
    config["norm_topk_prob"] = true;
  }
  if (o.model_type == "mixtral") {
    config["intermediate_size"] = o.moe_intermediate_size;
    config["num_local_experts"] = o.num_experts;
    config["num_experts_per_tok"] = o.num_experts_per_tok;
  }
  if (is_scion && !o.sparse_layers.empty()) {
    config["moe_intermediate_size"] = o.moe_intermediate_size;
    config["sparse_layers"] = o.sparse_layers;
    config["num_experts_per_tok"] = o.num_experts_per_tok;
    config["domains"] = OrderedJson::array();
    for (const TinyDomain& d : o.domains) {
      config["domains"].push_back({{"name", d.name}, {"num_experts", d.num_experts}});
    }
    config["default_domain"] = o.default_domain;
  }
  return config;
}

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "tiny model: %s\n", message.c_str());
  std::abort();
}

}  // namespace

TinyFile& TinyModel::File(std::string_view path) {
  for (TinyFile& file : files) {
    if (file.path == path) return file;
  }
  Die("no file " + std::string(path));
}

TinyTensor& TinyModel::Tensor(std::string_view name) {
  for (TinyFile& file : files) {
    for (TinyTensor& tensor : file.tensors) {
      if (tensor.name == name) return tensor;
    }
  }
  Die("no tensor " + std::string(name));
}

TinyModel MakeTinyModel(const TinyModelOptions& options) {
  TinyModel model;
  model.config = Config(options);
  model.generation_config = {{"bos_token_id", options.bos_token_id}, {"eos_token_id", options.eos_token_id}};
  model.with_index = options.with_index;
  model.with_lock = options.with_lock;
  Builder builder(options);
  model.files.push_back(builder.Trunk());
  if (options.model_type == "scion" && !options.sparse_layers.empty()) {
    for (const TinyDomain& domain : options.domains) model.files.push_back(builder.Domain(domain));
  }
  if (!options.blocks.has_value()) return model;
  OrderedJson quantization = {{"quant_method", "ggml"}, {"type", DTypeName(*options.blocks)}};
  for (const TinyTensor& tensor : model.files[0].tensors) {
    if (!tensor.blocks.has_value() || tensor.blocks == options.blocks) continue;
    quantization["tensors"][tensor.name] = DTypeName(*tensor.blocks);
  }
  model.config["quantization_config"] = std::move(quantization);
  return model;
}

OrderedJson SafetensorsHeader(const std::vector<TinyTensor>& tensors) {
  OrderedJson header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const TinyTensor& t : tensors) {
    header[t.name] = {
        {"dtype", DTypeName(t.dtype)}, {"shape", t.shape}, {"data_offsets", {offset, offset + t.data.size()}}};
    offset += t.data.size();
  }
  return header;
}

std::string SafetensorsData(const std::vector<TinyTensor>& tensors) {
  std::string data;
  for (const TinyTensor& t : tensors) data += t.data;
  return data;
}

std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return bytes.append(header).append(data);
}

std::string SafetensorsBytes(const std::vector<TinyTensor>& tensors) {
  return SafetensorsBytes(SafetensorsHeader(tensors).dump(), SafetensorsData(tensors));
}

void WriteTinyModel(const TinyModel& model, const fs::path& directory) {
  fs::create_directories(directory);
  WriteBytes(directory / "config.json", model.config.dump(1) + "\n");
  WriteBytes(directory / "generation_config.json", model.generation_config.dump(1) + "\n");
  OrderedJson index = {{"metadata", OrderedJson::object()}, {"weight_map", OrderedJson::object()}};
  for (const TinyFile& file : model.files) {
    fs::create_directories((directory / file.path).parent_path());
    WriteBytes(directory / file.path, SafetensorsBytes(file.tensors));
    for (const TinyTensor& tensor : file.tensors) index["weight_map"][tensor.name] = file.path;
  }
  if (model.with_index) WriteBytes(directory / "model.safetensors.index.json", index.dump(1) + "\n");
  if (model.with_lock) WriteTinyLock(model, directory);
}

void WriteTinyLock(const TinyModel& model, const fs::path& directory) {
  LockFile lock;
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors.index.json"}) {
    if (!fs::exists(directory / name)) continue;
    const std::string bytes = ReadBytes(directory / name);
    lock.files[name] = {.size = bytes.size(), .sha256 = Sha256Hex(bytes), .is_data = false, .tensors = {}};
  }
  for (const TinyFile& file : model.files) {
    const std::string bytes = ReadBytes(directory / file.path);
    LockFile::File& entry = lock.files[file.path];
    entry = {.size = bytes.size(), .sha256 = Sha256Hex(bytes), .is_data = true, .tensors = {}};
    for (const TinyTensor& tensor : file.tensors) entry.tensors[tensor.name] = Sha256Hex(tensor.data);
    constexpr std::string_view kPrefix = "domains/";
    if (!file.path.starts_with(kPrefix)) continue;
    const std::string name = file.path.substr(kPrefix.size(), file.path.find('.') - kPrefix.size());
    lock.domains[name] = {.file = file.path, .generation = 1};
  }
  lock.lineage = {{.verb = "create",
                   .time = "2026-01-01T00:00:00Z",
                   .version = "test",
                   .source = "tiny",
                   .source_lock_sha256 = "",
                   .domains = {}}};
  WriteBytes(directory / kLockFileName, SerializeLockFile(lock));
}

std::string ReadBytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Die("can't read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

void WriteBytes(const fs::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) Die("can't write " + path.string());
}

TempDir::TempDir() {
  std::string name = (fs::temp_directory_path() / "scion_test_XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) Die("can't make a temporary directory");
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace scion::test
