#include "extract/export_gguf.h"

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "engine/base/status.h"
#include "extract/export_tensor_writer.h"
#include "extract/gguf_header.h"
#include "extract/gguf_vocabulary_of.h"
#include "extract/lock_builder.h"
#include "extract/staged_file.h"

namespace scion {
namespace {

constexpr uint32_t kQuantizationVersion = 2;  // of GGML's blocks

// How llama.cpp numbers files by the type of most weights; nothing where it has several names for one.
std::optional<uint32_t> FileType(DType type) {
  switch (type) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 7;
    case DType::kQ5_0:
      return 8;
    case DType::kQ5_1:
      return 9;
    case DType::kQ6K:
      return 18;
    case DType::kBF16:
      return 32;
    default:
      return std::nullopt;
  }
}

void AddModelKeys(const ModelSpec& spec, const ExportPlan& plan, std::string_view name, GgufHeaderWriter& header) {
  const std::string architecture = plan.family == ExportFamily::kQwen3Moe ? "qwen3moe" : "llama";
  const AttentionSpec& attention = spec.layers[0].attention;
  const FfnSpec& ffn = spec.layers[0].ffn;
  header.AddString("general.architecture", architecture);
  header.AddString("general.type", "model");
  header.AddString("general.name", name);
  if (const std::optional<uint32_t> type = FileType(plan.main_type())) header.AddUint32("general.file_type", *type);
  if (IsQuantized(plan.main_type())) header.AddUint32("general.quantization_version", kQuantizationVersion);
  const auto add = [&](std::string_view key, int value) {
    header.AddUint32(absl::StrCat(architecture, ".", ToAbsl(key)), static_cast<uint32_t>(value));
  };
  add("vocab_size", spec.vocab_size);
  add("context_length", spec.max_position_embeddings);
  add("embedding_length", spec.hidden_size);
  add("block_count", static_cast<int>(spec.layers.size()));
  add("feed_forward_length", ffn.intermediate_size);
  add("attention.head_count", attention.num_heads);
  add("attention.head_count_kv", attention.num_kv_heads);
  add("attention.key_length", attention.head_dim);
  add("attention.value_length", attention.head_dim);
  add("rope.dimension_count", attention.head_dim);
  header.AddFloat32(architecture + ".attention.layer_norm_rms_epsilon", spec.rms_norm_eps);
  header.AddFloat32(architecture + ".rope.freq_base", attention.rope_theta);
  if (plan.family == ExportFamily::kLlama) return;
  add("expert_count", spec.domains[0].num_experts);
  add("expert_used_count", ffn.num_experts_per_tok);
  if (plan.family == ExportFamily::kQwen3Moe) add("expert_feed_forward_length", ffn.intermediate_size);
}

// The tokens that end a text: GGUF has three keys for them.
absl::Status AddEndTokens(const std::optional<int32_t>& eos, const std::vector<int>& all, GgufHeaderWriter& header) {
  std::vector<int> ids;
  if (eos.has_value()) ids.push_back(*eos);
  for (int id : all) {
    if (id != eos) ids.push_back(id);
  }
  constexpr std::array<std::string_view, 3> kKeys = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                                     "tokenizer.ggml.eom_token_id"};
  if (ids.size() > kKeys.size()) {
    return absl::UnimplementedError(
        absl::StrCat(ids.size(), " tokens end a text, but GGUF has keys for ", kKeys.size()));
  }
  for (size_t i = 0; i < ids.size(); ++i) header.AddUint32(kKeys[i], static_cast<uint32_t>(ids[i]));
  return absl::OkStatus();
}

absl::Status AddTokenizerKeys(const ModelSpec& spec, const std::optional<GgufVocabulary>& vocabulary,
                              GgufHeaderWriter& header) {
  header.AddString("tokenizer.ggml.model", vocabulary.has_value() ? vocabulary->model : "none");
  std::optional<int32_t> bos = spec.bos_token_id, eos;
  if (vocabulary.has_value()) {
    const GgufVocabulary& v = *vocabulary;
    if (!v.pre.empty()) header.AddString("tokenizer.ggml.pre", v.pre);
    header.AddStrings("tokenizer.ggml.tokens", v.tokens);
    if (!v.scores.empty()) header.AddFloats("tokenizer.ggml.scores", v.scores);
    if (!v.types.empty()) header.AddInt32s("tokenizer.ggml.token_type", v.types);
    if (!v.merges.empty() || v.model == "gpt2") header.AddStrings("tokenizer.ggml.merges", v.merges);
    if (v.unknown_token_id) {
      header.AddUint32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(*v.unknown_token_id));
    }
    if (v.add_bos) header.AddBool("tokenizer.ggml.add_bos_token", *v.add_bos);
    if (v.add_eos) header.AddBool("tokenizer.ggml.add_eos_token", *v.add_eos);
    if (v.add_space_prefix) header.AddBool("tokenizer.ggml.add_space_prefix", *v.add_space_prefix);
    if (v.nfc) header.AddBool("scion.tokenizer.nfc", *v.nfc);
    if (v.chat_template) header.AddString("tokenizer.chat_template", *v.chat_template);
    if (v.bos_token_id) bos = v.bos_token_id;
    eos = v.eos_token_id;
  }
  if (bos.has_value()) header.AddUint32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*bos));
  return AddEndTokens(eos, spec.eos_token_ids, header);
}

}  // namespace

absl::Status ExportGguf(const Checkpoint& checkpoint, const ExportPlan& plan, const std::filesystem::path& out,
                        Progress& progress, ExportResult& result) {
  SCION_ASSIGN_OR_RETURN(const std::optional<GgufVocabulary> vocabulary, GgufVocabularyOf(checkpoint));
  if (vocabulary.has_value()) result.pre_tokenizer = vocabulary->pre.empty() ? vocabulary->model : vocabulary->pre;
  GgufHeaderWriter header;
  const std::filesystem::path& source = checkpoint.directory();
  const std::string name = checkpoint.is_gguf() ? source.stem().string() : ModelName(source);
  AddModelKeys(checkpoint.spec(), plan, name, header);
  SCION_RETURN_IF_ERROR(Annotate(AddTokenizerKeys(checkpoint.spec(), vocabulary, header), source.string()));
  for (const ExportTensor& tensor : plan.tensors) {
    header.AddTensor(tensor.name, tensor.shape, tensor.type, tensor.bytes());
  }
  const absl::StatusOr<std::string> head = header.Finish();
  if (!head.ok()) return Annotate(head.status(), source.string());

  SCION_ASSIGN_OR_RETURN(StagedFile file, StagedFile::Create(out));
  SCION_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(*head))));
  constexpr std::array<std::byte, kGgufAlignment> kZeros = {};
  for (const ExportTensor& tensor : plan.tensors) {
    SCION_RETURN_IF_ERROR(WriteExportTensor(
        checkpoint, tensor, [&](std::span<const std::byte> bytes) { return file.Append(bytes); }, progress));
    SCION_RETURN_IF_ERROR(file.Append(std::span(kZeros).first(GgufPadding(tensor.bytes()))));
  }
  // What this reader refuses would not be an export of the model.
  const auto readable = Checkpoint::Open(file.path());
  if (!readable.ok()) return Annotate(readable.status(), "what was written can't be read back");
  return file.Commit();
}

}  // namespace scion
