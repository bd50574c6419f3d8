#include "extract/export_hugging_face.h"

#include <charconv>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "extract/companion_files.h"
#include "extract/digest_file.h"
#include "extract/export_tensor_writer.h"
#include "extract/new_file.h"
#include "extract/staged_directory.h"
#include "extract/tokenizer_json.h"

namespace scion {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

std::string Dump(const OrderedJson& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n";
}

// The number that people would write: 1e-05 and not 9.999999747378752e-06. The same float when it is read.
double ShortestDecimal(float value) {
  char text[32] = {};
  std::to_chars(text, text + sizeof(text) - 1, value);
  return std::strtod(text, nullptr);
}

void SetFamily(const ModelSpec& spec, ExportFamily family, OrderedJson& config) {
  const FfnSpec& ffn = spec.layers[0].ffn;
  const auto set = [&](const char* model_type, const char* architecture) {
    config["model_type"] = model_type;
    config["architectures"] = {architecture};
  };
  config["intermediate_size"] = ffn.intermediate_size;
  if (family == ExportFamily::kLlama) return set("llama", "LlamaForCausalLM");
  if (family == ExportFamily::kMixtral) {
    set("mixtral", "MixtralForCausalLM");
    config["num_local_experts"] = spec.domains[0].num_experts;
    config["num_experts_per_tok"] = ffn.num_experts_per_tok;
    config["sliding_window"] = nullptr;
    return;
  }
  set("qwen3_moe", "Qwen3MoeForCausalLM");
  OrderedJson dense_layers = OrderedJson::array();
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const FfnSpec& layer = spec.layers[l].ffn;
    if (layer.router == RouterKind::kNone) {
      dense_layers.push_back(l);
      config["intermediate_size"] = layer.intermediate_size;
      continue;
    }
    config["moe_intermediate_size"] = layer.intermediate_size;
    config["num_experts_per_tok"] = layer.num_experts_per_tok;
    config["norm_topk_prob"] = layer.norm_topk_prob;
  }
  config["num_experts"] = spec.domains[0].num_experts;
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = std::move(dense_layers);
  config["use_sliding_window"] = false;
}

OrderedJson SpecialTokens(const ModelSpec& spec) {
  OrderedJson tokens = {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}};
  if (spec.bos_token_id.has_value()) tokens["bos_token_id"] = *spec.bos_token_id;
  if (spec.eos_token_ids.size() == 1) tokens["eos_token_id"] = spec.eos_token_ids[0];
  if (spec.eos_token_ids.size() > 1) tokens["eos_token_id"] = spec.eos_token_ids;
  return tokens;
}

// Consecutive tensors of the plan, in one file.
struct Shard {
  std::string name;
  std::vector<const ExportTensor*> tensors;
  uint64_t bytes = 0;
};

std::vector<Shard> MakeShards(const ExportPlan& plan, uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  for (const ExportTensor& tensor : plan.tensors) {
    if (!shards.back().tensors.empty() && shards.back().bytes + tensor.bytes() > max_bytes) shards.emplace_back();
    shards.back().tensors.push_back(&tensor);
    shards.back().bytes += tensor.bytes();
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shards.size() == 1 ? "model.safetensors"
                                        : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::string SafetensorsHeader(const Shard& shard) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const ExportTensor* tensor : shard.tensors) {
    header[tensor->name] = {{"dtype", DTypeName(tensor->type)},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, offset + tensor->bytes()}}};
    offset += tensor->bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i));
  return bytes + text;
}

absl::Status WriteWeights(const Checkpoint& checkpoint, const ExportPlan& plan, const fs::path& directory,
                          uint64_t max_shard_bytes, Progress& progress) {
  const std::vector<Shard> shards = MakeShards(plan, max_shard_bytes);
  std::map<std::string, std::string> weight_map;
  for (const Shard& shard : shards) {
    SCION_ASSIGN_OR_RETURN(NewFile file, NewFile::Create(directory / shard.name));
    const std::string header = SafetensorsHeader(shard);
    SCION_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(header))));
    for (const ExportTensor* tensor : shard.tensors) {
      SCION_RETURN_IF_ERROR(WriteExportTensor(
          checkpoint, *tensor, [&](std::span<const std::byte> bytes) { return file.Append(bytes); }, progress));
      weight_map[tensor->name] = shard.name;
    }
    SCION_RETURN_IF_ERROR(file.Finish());
  }
  if (shards.size() == 1) return absl::OkStatus();
  return WriteNewFile(directory / kIndexFileName,
                      Dump({{"metadata", {{"total_size", plan.bytes()}}}, {"weight_map", weight_map}}));
}

// Tokenizer, licence and generation settings, as they are; no code, which a plain model needs none of.
absl::Status CopyCompanions(const fs::path& source, const fs::path& directory, Progress& progress) {
  SCION_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListCompanionFiles(source));
  for (const std::string& name : names) {
    if (name.ends_with(".py")) continue;
    SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(source / name));
    SCION_ASSIGN_OR_RETURN(NewFile copy, NewFile::Create(directory / name));
    SCION_RETURN_IF_ERROR(DigestFile(file, {}, &copy, progress).status());
    SCION_RETURN_IF_ERROR(copy.Finish());
  }
  return absl::OkStatus();
}

absl::Status WriteGgufCompanions(const Checkpoint& checkpoint, const std::string& tokenizer,
                                 const fs::path& directory) {
  SCION_RETURN_IF_ERROR(WriteNewFile(directory / "generation_config.json", Dump(SpecialTokens(checkpoint.spec()))));
  if (checkpoint.vocabulary() == nullptr) return absl::OkStatus();
  SCION_RETURN_IF_ERROR(WriteNewFile(directory / "tokenizer.json", tokenizer));
  return WriteNewFile(directory / "tokenizer_config.json", TokenizerConfigJson(*checkpoint.vocabulary()));
}

}  // namespace

const char* TorchDTypeName(DType type) {
  return type == DType::kF32 ? "float32" : type == DType::kF16 ? "float16" : "bfloat16";
}

OrderedJson HuggingFaceConfig(const ModelSpec& spec, ExportFamily family, DType type) {
  const AttentionSpec& attention = spec.layers[0].attention;
  const double rope_theta = ShortestDecimal(attention.rope_theta);
  OrderedJson config;
  SetFamily(spec, family, config);
  config.update({{"vocab_size", spec.vocab_size},
                 {"hidden_size", spec.hidden_size},
                 {"num_hidden_layers", spec.layers.size()},
                 {"num_attention_heads", attention.num_heads},
                 {"num_key_value_heads", attention.num_kv_heads},
                 {"head_dim", attention.head_dim},
                 {"hidden_act", "silu"},
                 {"attention_bias", false},
                 {"rms_norm_eps", ShortestDecimal(spec.rms_norm_eps)},
                 {"max_position_embeddings", spec.max_position_embeddings},
                 {"tie_word_embeddings", spec.tie_word_embeddings},
                 {"rope_theta", rope_theta},
                 {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", rope_theta}}},
                 {"torch_dtype", TorchDTypeName(type)},
                 {"dtype", TorchDTypeName(type)}});
  config.update(SpecialTokens(spec));
  return config;
}

absl::Status ExportHuggingFace(const Checkpoint& checkpoint, const ExportPlan& plan, const fs::path& out,
                               uint64_t max_shard_bytes, Progress& progress) {
  std::string tokenizer;
  if (checkpoint.vocabulary() != nullptr) {
    absl::StatusOr<std::string> made = TokenizerJson(*checkpoint.vocabulary());
    if (!made.ok()) return Annotate(made.status(), checkpoint.directory().string());
    tokenizer = *std::move(made);
  }
  SCION_ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Create(out));
  const fs::path& directory = staged.path();
  SCION_RETURN_IF_ERROR(WriteNewFile(directory / "config.json",
                                     Dump(HuggingFaceConfig(checkpoint.spec(), plan.family, plan.main_type()))));
  SCION_RETURN_IF_ERROR(checkpoint.is_gguf() ? WriteGgufCompanions(checkpoint, tokenizer, directory)
                                             : CopyCompanions(checkpoint.directory(), directory, progress));
  SCION_RETURN_IF_ERROR(WriteWeights(checkpoint, plan, directory, max_shard_bytes, progress));
  // What this reader refuses would not be an export of the model.
  const auto readable = Checkpoint::Open(directory);
  if (!readable.ok()) return Annotate(readable.status(), "what was written can't be read back");
  return staged.Commit();
}

}  // namespace scion
