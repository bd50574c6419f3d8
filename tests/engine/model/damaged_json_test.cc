// Absurd, deep and contradictory JSON, in each of the files that hold JSON.
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/engine/model/damage.h"

namespace scion::test {
namespace {

namespace fs = std::filesystem;

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kLock[] = "scion.lock.json";

std::string Repeat(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

std::vector<Damage> AbsurdTexts() {
  std::vector<Damage> damages;
  const std::vector<std::pair<std::string, std::string>> kTexts = {
      {"empty", ""},
      {"space", "   \n"},
      {"null", "null"},
      {"number", "42"},
      {"text", "\"config\""},
      {"array", "[]"},
      {"unclosed", "{\"a\": 1"},
      {"trailing_comma", "{\"a\": 1,}"},
      {"two_documents", "{} {}"},
      {"bad_utf8", "{\"\xff\xfe\": 1}"},
      {"nul_behind", std::string("{}\0{}", 5)},
      {"nul_inside", std::string("{\0}", 3)},
      {"huge_number", "{\"a\": 1e999}"},
      {"key_twice", "{\"a\": 1, \"a\": 1}"},
      {"deep_arrays", "{\"a\": " + Repeat("[", 100000)},
      {"deep_objects", Repeat("{\"a\":", 100000)},
      {"closed_deep_arrays", "{\"a\": " + Repeat("[", 65) + Repeat("]", 65) + "}"},
      {"binary",
       "\x7f"
       "ELF\x02\x01\x01"},
      {"single_quotes", "{'a': 1}"},
      {"lone_surrogate", "{\"a\": \"\\ud800\"}"}};
  for (const auto& [name, text] : kTexts) {
    for (const std::string file : {"config.json", "generation_config.json", kIndex, kLock}) {
      const bool is_config = !file.starts_with("model") && file != kLock;
      // An empty generation_config.json is no worse than none.
      if (file == "generation_config.json" && text.empty()) continue;
      damages.push_back(
          {.name = CaseName(name + "_" + file),
           .apply = [file = file, text = text](const fs::path& dir, TinyModel&) { WriteBytes(dir / file, text); },
           .code = is_config ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss,
           .mentions = {file},
           .with_lock = file == kLock});
    }
    for (const std::string file : kDataFiles) {
      damages.push_back({.name = CaseName(name + "_header_of_" + file),
                         .apply =
                             [file = file, text = text](const fs::path& dir, TinyModel& m) {
                               WriteBytes(dir / file, SafetensorsBytes(text, SafetensorsData(m.File(file).tensors)));
                             },
                         .mentions = {file}});
    }
  }
  return damages;
}
SCION_DAMAGE_CLASS(AbsurdJson, AbsurdTexts());

// A config that is JSON, but makes no sense, or asks for what this engine lacks.
std::vector<Damage> Configs() {
  std::vector<Damage> damages;
  using Json = nlohmann::ordered_json;
  const auto add = [&](const std::string& key, const Json& value, const std::string& word,
                       absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    damages.push_back({.name = CaseName(std::to_string(damages.size()) + "_" + key),
                       .apply =
                           [=](const fs::path& dir, TinyModel& m) {
                             m.config[key] = value;
                             WriteBytes(dir / "config.json", m.config.dump());
                           },
                       .code = code,
                       .mentions = {"config.json", word}});
  };
  for (const std::string key :
       {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts_per_tok"}) {
    for (const Json& value : {Json(0), Json(-1), Json(1ll << 40), Json(UINT64_MAX), Json(INT64_MIN), Json(1.5),
                              Json("32"), Json(true), Json::array({1})}) {
      add(key, value, "'" + key + "'");
    }
  }
  for (const std::string key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                "max_position_embeddings", "rms_norm_eps", "model_type", "domains"}) {
    add(key, nullptr, "'" + key + "' is missing");
  }
  for (const Json& eps : {Json(0), Json(-1e-5), Json(1.0), Json("1e-5")}) add("rms_norm_eps", eps, "'rms_norm_eps'");
  for (const Json& theta : {Json(0), Json(-1), Json(1e30), Json(20000.0), Json("10000")})
    add("rope_theta", theta, "'rope_theta'");
  add("rope_parameters", Json::object({{"rope_theta", 5e5}}), "'rope_parameters' says");
  add("torch_dtype", "float32", "'torch_dtype'");
  for (const Json& layers : {Json({1, 1}), Json({2, 1}), Json({1, 3}), Json({-1, 2}), Json({1, 2.0}), Json("all")}) {
    add("sparse_layers", layers, "'sparse_layers'");
  }
  add("sparse_layers", Json::array(), "'domains' without 'sparse_layers'");
  add("domains", Json::array(), "'domains' has 0");
  add("domains", Json::array({1}), "'domains'[0]");
  add("domains", Json::array({{{"name", "alpha"}}}), "'num_experts' is missing");
  add("domains", Json::array({{{"num_experts", 1}}}), "'name' is missing");
  for (const std::string name : {"", "Alpha", "auto", "all", "../x", "a.b", "a/b", "1a", "a b"}) {
    add("domains", Json::array({{{"name", name}, {"num_experts", 1}}}), "is not a domain's name");
  }
  add("domains", Json::array({{{"name", std::string(64, 'a')}, {"num_experts", 1}}}), "is not a domain's name");
  for (const Json& count : {Json(0), Json(-3), Json(4097), Json("3")}) {
    add("domains", Json::array({{{"name", "alpha"}, {"num_experts", count}}}), "'num_experts'");
  }
  add("domains", Json::array({{{"name", "a"}, {"num_experts", 1}}, {{"name", "a"}, {"num_experts", 1}}}), "'a' twice");
  add("default_domain", "gamma", "'default_domain' 'gamma'");
  for (const Json& id : {Json(-1), Json(53), Json("0"), Json({0, 53}), Json(Json::array({Json::array({0})}))}) {
    add("eos_token_id", id, "'eos_token_id'");
  }
  add("bos_token_id", 53, "'bos_token_id'");

  const auto kUnimplemented = absl::StatusCode::kUnimplemented;
  add("model_type", "gpt_oss", "'gpt_oss'", kUnimplemented);
  add("model_type", "mixtral", "'architectures'", kUnimplemented);
  add("architectures", Json::array({"LlamaForCausalLM"}), "'architectures'", kUnimplemented);
  add("hidden_act", "gelu", "'gelu'", kUnimplemented);
  add("attention_bias", true, "'attention_bias'", kUnimplemented);
  add("mlp_bias", true, "'mlp_bias'", kUnimplemented);
  add("sliding_window", 4096, "'sliding_window'", kUnimplemented);
  add("use_sliding_window", true, "'use_sliding_window'", kUnimplemented);
  add("layer_types", Json::array({"full_attention", "sliding_attention"}), "'layer_types'", kUnimplemented);
  add("rope_scaling", Json::object({{"rope_type", "yarn"}}), "'yarn'", kUnimplemented);
  add("rope_scaling", Json::object({{"type", "linear"}}), "'linear'", kUnimplemented);
  add("rope_parameters", Json::object({{"rope_type", "llama3"}}), "'llama3'", kUnimplemented);
  add("partial_rotary_factor", 0.5, "'partial_rotary_factor'", kUnimplemented);
  add("head_dim", 24, "'head_dim' is 24", kUnimplemented);
  add("head_dim", 272, "'head_dim' is 272", kUnimplemented);
  add("num_key_value_heads", 3, "'num_key_value_heads' 3", kUnimplemented);
  return damages;
}
SCION_DAMAGE_CLASS(Configs, Configs());

// A lock that was changed, with or without its checksum put right.
std::vector<Damage> Locks() {
  std::vector<Damage> damages;
  const std::string text = [] {
    const TempDir dir;
    WriteTinyModel(WholeModel({.with_lock = true}), dir.path());
    return ReadBytes(dir.path() / kLock);
  }();
  // One byte anywhere.
  for (int i = 0; i < 24; ++i) {
    const size_t at = text.size() * static_cast<size_t>(i) / 24;
    damages.push_back({.name = "byte_" + std::to_string(at),
                       .apply =
                           [=](const fs::path& dir, TinyModel&) {
                             std::string bytes = ReadBytes(dir / kLock);
                             bytes[at] = static_cast<char>(bytes[at] ^ 1);
                             WriteBytes(dir / kLock, bytes);
                           },
                       .mentions = {kLock},
                       .with_lock = true});
  }
  for (const auto& [name, old_text, new_text] :
       {std::tuple{"spaces", "\"format\": 1", "\"format\":  1"}, std::tuple{"tab", "\n \"files\"", "\n\t\"files\""},
        std::tuple{"unknown_key", "\n \"files\"", "\n \"extra\": 1,\n \"files\""}}) {
    damages.push_back(
        {.name = std::string("text_") + name,
         .apply =
             [old_text = std::string(old_text), new_text = std::string(new_text)](const fs::path& dir, TinyModel&) {
               std::string bytes = ReadBytes(dir / kLock);
               bytes.replace(bytes.find(old_text), old_text.size(), new_text);
               WriteBytes(dir / kLock, bytes);
             },
         .mentions = {kLock},
         .with_lock = true});
  }
  // Earlier generations that make no sense, under a checksum that is right.
  using Generation = LockFile::Generation;
  const Generation sound{.file = "domains/alpha.g7.safetensors",
                         .generation = 7,
                         .num_experts = 2,
                         .size = 1000,
                         .sha256 = std::string(64, 'a'),
                         .quantization = {}};
  const auto with = [&](const std::function<void(Generation&)>& change) {
    Generation changed = sound;
    change(changed);
    return changed;
  };
  const auto add_earlier = [&](const std::string& name, const std::string& domain,
                               const std::vector<Generation>& generations, const std::string& word) {
    damages.push_back({.name = "earlier_" + name,
                       .apply =
                           [=](const fs::path& dir, TinyModel&) {
                             LockFile lock = *ParseLockFile(ReadBytes(dir / kLock));
                             lock.earlier[domain] = generations;
                             WriteBytes(dir / kLock, SerializeLockFile(lock));
                           },
                       .mentions = {kLock, "earlier: '" + domain + "'", word},
                       .with_lock = true});
  };
  for (const char* path : {"../alpha.safetensors", "/etc/passwd", "domains/../../x", ""}) {
    add_earlier("path_" + std::to_string(std::string(path).size()), "alpha",
                {with([&](Generation& g) { g.file = path; })}, "not a path inside");
  }
  for (const char* path : {kTrunk, kAlpha}) {
    add_earlier(std::string("in_use_") + path[0], "alpha", {with([&](Generation& g) { g.file = path; })}, "twice");
  }
  add_earlier("generation_0", "alpha", {with([](Generation& g) { g.generation = 0; })}, "'generation'");
  add_earlier("generation_in_use", "alpha", {with([](Generation& g) { g.generation = 1; })}, "generation 1");
  add_earlier("experts", "alpha", {with([](Generation& g) { g.num_experts = 0; })}, "'num_experts'");
  add_earlier("sha256", "alpha", {with([](Generation& g) { g.sha256 = "x"; })}, "'sha256'");
  add_earlier("twice", "alpha", {sound, with([](Generation& g) { g.file = "domains/other.safetensors"; })}, "twice");
  add_earlier("two_of_one_file", "alpha", {sound, with([](Generation& g) { g.generation = 8; })}, "twice");
  add_earlier("domain", "../x", {sound}, "not a domain's name");
  return damages;
}
SCION_DAMAGE_CLASS(Locks, Locks());

// The control, and that what is not sound in a list of them is only that.
TEST(EarlierGenerations, OpenAndComeBackAsTheyWere) {
  const TempDir dir;
  WriteTinyModel(WholeModel({.with_lock = true}), dir.path());
  LockFile lock = *ParseLockFile(ReadBytes(dir.path() / kLock));
  const QuantizationSpec blocks{.type = DType::kQ8_0, .tensors = {{"a", DType::kQ4_0}}};
  lock.earlier["alpha"] = {{"domains/alpha.g7.safetensors", 7, 2, 1000, std::string(64, 'a'), {}},
                           {"domains/alpha.g9.safetensors", 9, 3, 1001, std::string(64, 'b'), blocks}};
  lock.earlier["gone"] = {{"domains/gone.safetensors", 1, 1, 10, std::string(64, 'c'), {}}};
  WriteBytes(dir.path() / kLock, SerializeLockFile(lock));
  const auto opened = Checkpoint::Open(dir.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto& earlier = (*opened)->lock()->earlier;
  ASSERT_EQ(earlier.size(), 2u);
  ASSERT_EQ(earlier.at("alpha").size(), 2u);
  EXPECT_EQ(earlier.at("alpha")[1].file, "domains/alpha.g9.safetensors");
  EXPECT_EQ(earlier.at("alpha")[1].num_experts, 3);
  EXPECT_EQ(earlier.at("alpha")[1].quantization->tensors, blocks.tensors);
  EXPECT_EQ((*opened)->files().size(), 3u);  // none of them is opened
  EXPECT_EQ(SerializeLockFile(*(*opened)->lock()), ReadBytes(dir.path() / kLock));
}

}  // namespace
}  // namespace scion::test
