// Damage to what a tensor is: its shape, its dtype, its presence, its place, the entries of a route.
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/engine/model/damage.h"

namespace scion::test {
namespace {

namespace fs = std::filesystem;

TinyModel Plain() { return WholeModel({}); }

// Not square, so that a transposed shape differs.
const char* const kMatrices[] = {"model.embed_tokens.weight",
                                 "model.layers.0.mlp.gate_proj.weight",
                                 "model.layers.1.self_attn.v_proj.weight",
                                 "model.layers.1.mlp.domains.alpha.experts.0.down_proj.weight",
                                 "model.layers.2.mlp.domains.beta.experts.1.gate_proj.weight",
                                 "model.layers.2.mlp.domains.beta.route"};

std::vector<Damage> Shapes() {
  std::vector<Damage> damages;
  TinyModel model = Plain();
  for (const std::string tensor : kMatrices) {
    const std::vector<int64_t> shape = model.Tensor(tensor).shape;
    const int64_t rows = shape[0], cols = shape[1];
    const std::string r = std::to_string(rows), c = std::to_string(cols);
    const std::vector<std::pair<std::string, std::string>> kValues = {
        {"[-" + r + "," + c + "]", "negative number -" + r},
        {"[-" + r + ",-" + c + "]", "negative"},
        {"[" + r + ",-9223372036854775808]", "negative"},
        {"[9223372036854775808," + c + "]", "overflows"},
        {"[18446744073709551615,1]", "overflows"},
        {"[18446744073709551616,1]", "unexpected the number"},
        {"[4294967296,4294967296]", "overflows"},
        {"[4611686018427387904,4]", "overflows"},
        {"[9223372036854775807,9223372036854775807]", "overflows"},
        {"[65536,65536,65536,65536]", "overflows"},
        {"[" + r + ",1099511627776]", "span"},
        {"[" + r + "," + std::to_string(cols + 1) + "]", "span"},
        {"[" + std::to_string(rows - 1) + "," + c + "]", "span"},
        {"[" + c + "," + r + "]", "shape [" + c + ", " + r + "], but config.json asks for [" + r + ", " + c + "]"},
        {"[" + std::to_string(rows * cols) + "]", "config.json asks for"},
        {"[1," + r + "," + c + "]", "config.json asks for"},
        {"[" + r + "," + c + ",1]", "config.json asks for"},
        {"[1,1,1,1,1,1,1," + r + "," + c + "]", "more than 8 dimensions"},
        {"[0," + c + "]", "span"},
        {"[]", "span"},
        {"[" + r + "," + c + ".5]", "unexpected the number"},
        {"[" + r + ",\"" + c + "\"]", "unexpected a string"},
        {"[[" + r + "]," + c + "]", "unexpected an array"},
        {"[{}]", "unexpected an object"},
        {"null", "unexpected null"},
        {r, "unexpected a number"},
        {"", "shape is missing"}};
    for (size_t i = 0; i < kValues.size(); ++i) {
      damages.push_back({.name = CaseName(tensor + "_" + std::to_string(i)),
                         .apply = [=, value = kValues[i].first](
                                      const fs::path& dir, TinyModel& m) { EditField(dir, m, tensor, "shape", value); },
                         .mentions = {PathOf(model, tensor), "'" + tensor + "'", kValues[i].second}});
    }
  }
  // Whole and consistent files in which a tensor that is needed is empty.
  for (const std::string tensor : {"model.norm.weight", "model.layers.1.mlp.domains.alpha.route",
                                   "model.layers.1.mlp.domains.alpha.route_weight"}) {
    damages.push_back({.name = CaseName("empty_" + tensor),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             m.Tensor(tensor).shape.back() = 0;
                             m.Tensor(tensor).data.clear();
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {PathOf(model, tensor), "'" + tensor + "'", "config.json asks for"}});
  }
  return damages;
}
SCION_DAMAGE_CLASS(Shapes, Shapes());

std::vector<Damage> DTypes() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  const auto add = [&](const std::string& tensor, const std::string& value, const std::string& word,
                       absl::StatusCode code = absl::StatusCode::kDataLoss) {
    damages.push_back({.name = CaseName(std::to_string(damages.size()) + "_" + tensor),
                       .apply = [=](const fs::path& dir, TinyModel& m) { EditField(dir, m, tensor, "dtype", value); },
                       .code = code,
                       .mentions = {PathOf(model, tensor), "'" + tensor + "'", word}});
  };
  // The same number of bytes, so that only the kind is wrong.
  for (const std::string tensor :
       {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.2.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight",
        "model.layers.2.mlp.domains.alpha.experts.1.up_proj.weight",
        "model.layers.1.mlp.domains.beta.experts.0.gate_proj.weight"}) {
    add(tensor, "\"I16\"", "dtype I16, but F32, F16 or BF16 is needed");
  }
  for (const std::string domain : {"alpha", "beta"}) {
    for (const std::string layer : {"1", "2"}) {
      const std::string prefix = "model.layers." + layer + ".mlp.domains." + domain + ".";
      add(prefix + "route", "\"F32\"", "dtype F32, but I32 is needed");
      add(prefix + "route_weight", "\"I32\"", "dtype I32, but F32 is needed");
      add(prefix + "route", "\"I64\"", "span");
      add(prefix + "route_weight", "\"F64\"", "span");
    }
  }
  for (const std::string tensor : {"model.embed_tokens.weight", "model.layers.2.mlp.domains.beta.route"}) {
    for (const std::string unknown : {"F33", "bf16", "", "BF16 ", "FLOAT", "\\u0000", "I"}) {
      add(tensor, "\"" + unknown + "\"", "unknown dtype");
    }
    for (const std::string foreign : {"F8_E4M3", "F8_E5M2", "U16", "U32", "U64"}) {
      add(tensor, "\"" + foreign + "\"", "unsupported dtype '" + foreign + "'", absl::StatusCode::kUnimplemented);
    }
    add(tensor, "\"U8\"", "span");
    add(tensor, "\"BOOL\"", "span");
    add(tensor, "\"F64\"", "span");
    add(tensor, "5", "unexpected a number");
    add(tensor, "-5", "unexpected a number");
    add(tensor, "null", "unexpected null");
    add(tensor, "true", "unexpected a boolean");
    add(tensor, "[\"BF16\"]", "unexpected an array");
    add(tensor, "{}", "unexpected an object");
    add(tensor, "", "dtype is missing");
  }
  return damages;
}
SCION_DAMAGE_CLASS(WrongDType, DTypes());

void RemoveTensor(TinyModel& model, const std::string& name) {
  for (TinyFile& file : model.files) {
    std::erase_if(file.tensors, [&](const TinyTensor& t) { return t.name == name; });
  }
}

std::vector<Damage> Missing() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  for (const std::string path : kDataFiles) {
    const auto remove = [=](const fs::path& dir, TinyModel&) { fs::remove(dir / path); };
    const bool is_trunk = path == kTrunk;
    damages.push_back({.name = CaseName("file_in_index_" + path),
                       .apply = remove,
                       .code = absl::StatusCode::kNotFound,
                       .mentions = {path}});
    damages.push_back({.name = CaseName("file_in_lock_" + path),
                       .apply = remove,
                       .code = absl::StatusCode::kNotFound,
                       .mentions = {path},
                       .with_lock = true});
    damages.push_back({.name = CaseName("file_without_index_" + path),
                       .apply = remove,
                       .code = is_trunk ? absl::StatusCode::kNotFound : absl::StatusCode::kDataLoss,
                       .mentions = {is_trunk         ? "model.safetensors"
                                    : path == kAlpha ? "'alpha'"
                                                     : "'beta'"},
                       .with_index = false});
    damages.push_back({.name = CaseName("file_of_another_size_than_the_lock_says_" + path),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             std::vector<TinyTensor> tensors = m.File(path).tensors;
                             nlohmann::ordered_json header = SafetensorsHeader(tensors);
                             header["__metadata__"]["more"] = "text";
                             WriteBytes(dir / path, SafetensorsBytes(header.dump(), SafetensorsData(tensors)));
                           },
                       .mentions = {path, "scion.lock.json says"},
                       .with_lock = true});
  }
  damages.push_back({.name = "no_config",
                     .apply = [](const fs::path& dir, TinyModel&) { fs::remove(dir / "config.json"); },
                     .code = absl::StatusCode::kNotFound,
                     .mentions = {"config.json"}});
  damages.push_back({.name = "no_domains_directory",
                     .apply = [](const fs::path& dir, TinyModel&) { fs::remove_all(dir / "domains"); },
                     .code = absl::StatusCode::kNotFound,
                     .mentions = {"domains"},
                     .with_index = false});

  // Every kind of tensor, taken out of file and index.
  for (const std::string tensor :
       {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.2.post_attention_layernorm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.k_proj.weight", "model.layers.2.self_attn.v_proj.weight",
        "model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.domains.alpha.experts.0.gate_proj.weight",
        "model.layers.2.mlp.domains.alpha.experts.2.up_proj.weight",
        "model.layers.2.mlp.domains.beta.experts.1.down_proj.weight", "model.layers.1.mlp.domains.beta.route"}) {
    damages.push_back({.name = CaseName("tensor_" + tensor),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             RemoveTensor(m, tensor);
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {PathOf(model, tensor), "'" + tensor + "' is missing"}});
    damages.push_back({.name = CaseName("tensor_that_the_index_lists_" + tensor),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             const std::string index = ReadBytes(dir / "model.safetensors.index.json");
                             RemoveTensor(m, tensor);
                             WriteTinyModel(m, dir);
                             WriteBytes(dir / "model.safetensors.index.json", index);
                           },
                       .mentions = {PathOf(model, tensor), "'" + tensor + "'", "index.json says so"}});
  }

  const auto add_config = [&](const std::string& name, std::function<void(nlohmann::ordered_json&)> edit,
                              std::vector<std::string> mentions, bool with_index = true, bool with_lock = false) {
    damages.push_back({.name = name,
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             edit(m.config);
                             WriteBytes(dir / "config.json", m.config.dump());
                           },
                       .mentions = mentions,
                       .with_index = with_index,
                       .with_lock = with_lock});
  };
  for (const auto& [mode, with_index, with_lock] :
       {std::tuple{"index", true, false}, std::tuple{"names", false, false}, std::tuple{"lock", true, true}}) {
    add_config(
        std::string("config_asks_for_a_third_domain_by_") + mode,
        [](nlohmann::ordered_json& c) {
          c["domains"].push_back({{"name", "gamma"}, {"num_experts", 1}});
        },
        {"'gamma'", "no file for domain"}, with_index, with_lock);
    add_config(
        std::string("config_lacks_a_domain_by_") + mode, [](nlohmann::ordered_json& c) { c["domains"].erase(1); },
        {"'beta'", "is not in config.json"}, with_index, with_lock);
  }
  add_config("config_asks_for_more_experts", [](nlohmann::ordered_json& c) { c["domains"][1]["num_experts"] = 3; },
             {kBeta, "'model.layers.1.mlp.domains.beta.experts.2.gate_proj.weight' is missing"});
  add_config("config_asks_for_4096_experts", [](nlohmann::ordered_json& c) { c["domains"][0]["num_experts"] = 4096; },
             {kAlpha, "experts.3.gate_proj.weight' is missing"});
  add_config("config_asks_for_more_layers", [](nlohmann::ordered_json& c) { c["num_hidden_layers"] = 4; },
             {kTrunk, "'model.layers.3.input_layernorm.weight' is missing"});
  add_config("config_asks_for_a_head", [](nlohmann::ordered_json& c) { c["tie_word_embeddings"] = false; },
             {kTrunk, "'lm_head.weight' is missing"});
  add_config("config_has_another_sparse_layer",
             [](nlohmann::ordered_json& c) {
               c["sparse_layers"] = {0, 1, 2};
             },
             {kAlpha, "'model.layers.0.mlp.domains.alpha.experts.0.gate_proj.weight' is missing"});
  add_config("config_lacks_a_sparse_layer", [](nlohmann::ordered_json& c) { c["sparse_layers"] = {2}; },
             {kTrunk, "'model.layers.1.mlp.gate_proj.weight' is missing"});

  const auto add_move = [&](const std::string& tensor, const std::string& to, const std::string& word) {
    damages.push_back({.name = CaseName(tensor + "_moved_to_" + to),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             const TinyTensor copy = m.Tensor(tensor);
                             RemoveTensor(m, tensor);
                             m.File(to).tensors.push_back(copy);
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {to, "'" + tensor + "'", word}});
  };
  add_move("model.layers.1.mlp.domains.alpha.route", kBeta,
           "belongs to domain 'alpha', but lies in the file of 'beta'");
  add_move("model.layers.1.mlp.domains.beta.experts.0.up_proj.weight", kAlpha, "belongs to domain 'beta'");
  add_move("model.layers.2.mlp.domains.beta.route", kTrunk, "lies in the file of the trunk");
  add_move("model.norm.weight", kAlpha, "belongs to the trunk, but lies in the file of domain 'alpha'");

  const auto add_extra = [&](const std::string& tensor, const std::string& path, const std::string& word) {
    damages.push_back({.name = CaseName(tensor + "_added"),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             m.File(path).tensors.push_back({tensor, DType::kF32, {1}, std::string(4, '\0')});
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {path, "'" + tensor + "'", word}});
  };
  add_extra("model.layers.1.mlp.domains.gamma.route", kAlpha, "'gamma' is not in config.json");
  add_extra("model.layers.1.mlp.domains.gamma.extra", kTrunk, "'gamma' is not in config.json");
  add_extra("model.layers.0.mlp.domains.alpha.route", kAlpha, "does not ask for it");
  add_extra("model.layers.1.mlp.domains.beta.experts.2.gate_proj.weight", kBeta, "does not ask for it");
  return damages;
}
SCION_DAMAGE_CLASS(MissingOrMisplaced, Missing());

std::vector<Damage> Routes() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  constexpr int kVocab = 53, kRows = 2;
  for (const auto& [domain, num_experts] : {std::pair<std::string, int>{"alpha", 3}, {"beta", 2}}) {
    for (const std::string layer : {"1", "2"}) {
      const std::string tensor = "model.layers." + layer + ".mlp.domains." + domain + ".route";
      int i = 0;
      for (int32_t value : {-1, num_experts, num_experts + 1, INT32_MIN, INT32_MAX, 1 << 16}) {
        for (int row = 0; row < kRows; ++row) {
          const int token = std::vector<int>{0, 1, kVocab / 2, kVocab - 1}[static_cast<size_t>(i++ % 4)];
          damages.push_back({.name = CaseName(domain + layer + "_" + std::to_string(value) + "_" + std::to_string(row)),
                             .apply =
                                 [=](const fs::path& dir, TinyModel& m) {
                                   std::memcpy(m.Tensor(tensor).data.data() + 4 * (row * kVocab + token), &value, 4);
                                   WriteTinyModel(m, dir);
                                 },
                             .mentions = {PathOf(model, tensor), "'" + tensor + "'",
                                          "row " + std::to_string(row) + ", token " + std::to_string(token) +
                                              ": expert " + std::to_string(value)}});
        }
      }
      for (float weight : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        damages.push_back({.name = CaseName(domain + layer + "_weight_" + std::to_string(weight)),
                           .apply =
                               [=](const fs::path& dir, TinyModel& m) {
                                 std::memcpy(m.Tensor(tensor + "_weight").data.data() + 4, &weight, 4);
                                 WriteTinyModel(m, dir);
                               },
                           .mentions = {PathOf(model, tensor), "'" + tensor + "_weight'", "not finite"}});
      }
    }
  }
  return damages;
}
SCION_DAMAGE_CLASS(RouteEntries, Routes());

}  // namespace
}  // namespace scion::test
