// Damage to a quantised model: to what config.json says of its blocks, and to the tensors that hold them.
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/damage.h"

namespace scion::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

const std::string kEmbedding = "model.embed_tokens.weight";                                // Q8_0, [53, 34]
const std::string kQuery = "model.layers.0.self_attn.q_proj.weight";                       // Q4_0, [32, 18]
const std::string kDown = "model.layers.0.mlp.down_proj.weight";                           // BF16: rows of 48
const std::string kExpert = "model.layers.2.mlp.domains.beta.experts.1.gate_proj.weight";  // Q4_0, [40, 18]
const std::string kRoute = "model.layers.1.mlp.domains.alpha.route";                       // I32, [2, 53]

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

std::vector<Damage> QuantizationConfigs() {
  std::vector<Damage> damages;
  const auto add = [&](std::function<void(Json & quantization)> edit, absl::StatusCode code,
                       std::vector<std::string> mentions) {
    damages.push_back({.name = "case_" + std::to_string(damages.size()),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             edit(m.config["quantization_config"]);
                             WriteBytes(dir / "config.json", m.config.dump());
                           },
                       .code = code,
                       .mentions = std::move(mentions),
                       .blocks = DType::kQ4_0});
  };
  const std::string kKey = "'quantization_config'";
  for (const Json& value : {Json(4), Json("ggml"), Json(true), Json(false), Json::array({"ggml"})}) {
    add([=](Json& q) { q = value; }, kInvalid, {"config.json", kKey, "must be an object"});
  }
  add([](Json& q) { q.erase("quant_method"); }, kInvalid, {"config.json", kKey, "'quant_method' is missing"});
  add([](Json& q) { q["quant_method"] = nullptr; }, kInvalid, {kKey, "'quant_method' is missing"});
  add([](Json& q) { q["quant_method"] = 8; }, kInvalid, {kKey, "'quant_method'"});
  for (const std::string method : {"gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "GGML", ""}) {
    add([=](Json& q) { q["quant_method"] = method; }, kUnimplemented, {"config.json", kKey, "'" + method + "'"});
  }
  add([](Json& q) { q.erase("type"); }, kInvalid, {"config.json", kKey, "'type' is missing"});
  add([](Json& q) { q["type"] = 4; }, kInvalid, {kKey, "'type' must be a string"});
  for (const std::string type : {"Q3_K", "Q8_1", "IQ4_NL", "F16", "BF16", "U8", "q4_0", "Q4_0 ", ""}) {
    add([=](Json& q) { q["type"] = type; }, kUnimplemented, {"config.json", kKey, "'" + type + "'", "Q8_0"});
    add([=](Json& q) { q["tensors"][kQuery] = type; }, kUnimplemented, {kKey, "'" + kQuery + "'", "'" + type + "'"});
  }
  add([](Json& q) { q["group_size"] = 32; }, kInvalid, {"config.json", kKey, "unknown key 'group_size'"});
  add([](Json& q) { q["Tensors"] = Json::object(); }, kInvalid, {kKey, "unknown key 'Tensors'"});
  for (const Json& value : {Json("all"), Json(1), Json(nullptr), Json::array({kEmbedding})}) {
    add([=](Json& q) { q["tensors"] = value; }, kInvalid, {kKey, "'tensors' must be an object"});
  }
  for (const Json& value : {Json(8), Json(nullptr), Json::array({"Q8_0"}), Json::object()}) {
    add([=](Json& q) { q["tensors"][kEmbedding] = value; }, kInvalid,
        {kKey, "'" + kEmbedding + "'", "must be a string"});
  }
  // Sound by itself, but not what the files hold.
  for (const std::string name :
       {"lm_head.weight", "model.layers.9.self_attn.q_proj.weight", "", "model.embed_tokens"}) {
    add([=](Json& q) { q["tensors"][name] = "Q8_0"; }, kDataLoss,
        {"config.json", kKey, "'" + name + "'", "no file has"});
  }
  for (const auto& [name, path] :
       {std::pair{kDown, kTrunk}, {std::string("model.norm.weight"), kTrunk}, {kRoute, kAlpha}}) {
    add([=](Json& q) { q["tensors"][name] = "Q4_0"; }, kDataLoss, {path, "'" + name + "'", "is a matrix of Q4_0"});
  }
  for (const auto& [type, bytes] : {std::pair{"Q8_0", 34}, {"Q4_1", 20}, {"Q5_0", 22}, {"Q5_1", 24}, {"Q4_K", 144}}) {
    const std::string blocks = std::string("no whole number of ") + type + " blocks of " + std::to_string(bytes);
    add([=](Json& q) { q["type"] = type; }, kDataLoss, {kTrunk, "rows of 18 bytes", blocks});
    add([=](Json& q) { q["tensors"][kExpert] = type; }, kDataLoss, {kBeta, "'" + kExpert + "'", blocks});
  }
  add([](Json& q) { q["tensors"].erase(kEmbedding); }, kDataLoss, {kTrunk, "'" + kEmbedding + "'", "rows of 34 bytes"});
  damages.push_back({.name = "no_quantization_config",
                     .apply =
                         [](const fs::path& dir, TinyModel& m) {
                           m.config.erase("quantization_config");
                           WriteBytes(dir / "config.json", m.config.dump());
                         },
                     .mentions = {kTrunk, "'" + kEmbedding + "'", "asks for [53, 32]"},
                     .blocks = DType::kQ4_0});
  return damages;
}
SCION_DAMAGE_CLASS(QuantizationConfig, QuantizationConfigs());

std::vector<Damage> BlockTensors() {
  std::vector<Damage> damages;
  const TinyModel model = WholeModel({.blocks = DType::kQ4_0});
  const auto add = [&](const std::string& tensor, const std::string& field, const std::string& value,
                       const std::string& word) {
    damages.push_back({.name = CaseName(std::to_string(damages.size()) + "_" + tensor),
                       .apply = [=](const fs::path& dir, TinyModel& m) { EditField(dir, m, tensor, field, value); },
                       .mentions = {PathOf(model, tensor), "'" + tensor + "'", word},
                       .blocks = DType::kQ4_0});
  };
  for (const auto& [tensor, rows, asked] :
       {std::tuple{kQuery, 32, "asks for [32, 32]"}, {kExpert, 40, "asks for [40, 32]"}}) {
    const int bytes = rows * 18;
    add(tensor, "shape", "[" + std::to_string(rows / 2) + ",36]", asked);  // two blocks in a row
    add(tensor, "shape", "[" + std::to_string(rows / 4) + ",72]", asked);
    add(tensor, "shape", "[" + std::to_string(bytes) + "]", asked);
    add(tensor, "shape", "[1," + std::to_string(rows) + ",18]", asked);
    add(tensor, "shape", "[" + std::to_string(rows) + ",18,1]", asked);
    add(tensor, "shape", "[18," + std::to_string(rows) + "]", "no whole number");
    add(tensor, "shape", "[" + std::to_string(bytes) + ",1]", "no whole number");
    add(tensor, "shape", "[1," + std::to_string(bytes) + "]", asked);
    add(tensor, "shape", "[" + std::to_string(rows) + ",32]", "span");  // the weights' shape, not the bytes'
    add(tensor, "dtype", "\"I8\"", asked);
    add(tensor, "dtype", "\"BOOL\"", asked);
    add(tensor, "dtype", "\"F16\"", "span");
  }
  // Whole and consistent files.
  const auto add_tensor = [&](const std::string& name, const std::string& tensor, std::vector<int64_t> shape,
                              size_t bytes, const std::string& word) {
    damages.push_back({.name = name,
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             TinyTensor& t = m.Tensor(tensor);
                             t = {tensor, DType::kU8, shape, std::string(bytes, '\0')};
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {PathOf(model, tensor), "'" + tensor + "'", word},
                       .blocks = DType::kQ4_0});
  };
  add_tensor("one_block_more", kQuery, {32, 36}, 32 * 36, "shape [32, 64], but config.json asks for [32, 32]");
  add_tensor("one_row_more", kQuery, {33, 18}, 33 * 18, "shape [33, 32]");
  add_tensor("half_a_block_more", kQuery, {32, 27}, 32 * 27, "rows of 27 bytes");
  add_tensor("empty_rows", kQuery, {32, 0}, 0, "shape [32, 0]");
  add_tensor("overflow", kQuery, {0, INT64_MAX / 18 * 18}, 0, "overflows");
  add_tensor("almost_overflow", kQuery, {0, INT64_MAX / 32 * 18 / 18 * 18}, 0, "config.json asks for [32, 32]");
  add_tensor("norm_of_blocks", "model.norm.weight", {1, 18}, 18, "config.json asks for [32]");
  add_tensor("norm_of_bytes", "model.norm.weight", {32}, 32, "dtype U8, but F32, F16 or BF16 is needed");
  add_tensor("route_of_blocks", kRoute, {2, 36}, 72, "shape [2, 64], but config.json asks for [2, 53]");
  add_tensor("route_weight_of_bytes", kRoute + "_weight", {2}, 2, "dtype U8, but F32 is needed");
  add_tensor("embedding_of_q4", kEmbedding, {53, 18}, 53 * 18, "rows of 18 bytes");
  add_tensor("embedding_of_bytes", kEmbedding, {53 * 34}, 53 * 34, "is a matrix of Q8_0");
  return damages;
}
SCION_DAMAGE_CLASS(BlockTensors, BlockTensors());

}  // namespace
}  // namespace scion::test
