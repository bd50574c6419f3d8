#include "engine/model/gguf_tokenizer.h"

#include <cmath>
#include <string>
#include <utility>

#include "engine/base/status.h"

namespace scion {
namespace {

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kScores = "tokenizer.ggml.scores";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";
constexpr int32_t kMaxTokenType = 6;  // undefined, normal, unknown, control, user-defined, unused, byte

absl::Status CheckLength(const GgufMetadata& metadata, std::string_view key, const std::optional<GgufArray>& array,
                         const GgufArray& tokens) {
  if (!array.has_value() || array->count == tokens.count) return absl::OkStatus();
  return absl::DataLossError(metadata.Message(
      key, absl::StrCat("has ", array->count, " elements, but ", Quoted(kTokens), " has ", tokens.count)));
}

absl::StatusOr<std::optional<int32_t>> GetTokenId(const GgufMetadata& metadata, std::string_view key,
                                                  uint64_t num_tokens) {
  SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> id,
                         metadata.GetOptionalInt(key, 0, static_cast<int64_t>(num_tokens) - 1));
  if (!id.has_value()) return std::nullopt;
  return static_cast<int32_t>(*id);
}

absl::Status CheckElements(const GgufMetadata& metadata, const GgufVocabulary& vocabulary) {
  for (size_t i = 0; i < vocabulary.scores.size(); ++i) {
    if (!std::isfinite(vocabulary.scores[i])) {
      return absl::DataLossError(metadata.Message(kScores, absl::StrCat("element ", i, " is not finite")));
    }
  }
  for (size_t i = 0; i < vocabulary.types.size(); ++i) {
    if (vocabulary.types[i] < 0 || vocabulary.types[i] > kMaxTokenType) {
      return absl::DataLossError(metadata.Message(
          kTypes, absl::StrCat("element ", i, " is ", vocabulary.types[i], ", outside [0, ", kMaxTokenType, "]")));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<GgufVocabulary>> ReadGgufVocabulary(const ReadOnlyFile& file,
                                                                 const GgufMetadata& metadata) {
  GgufVocabulary vocabulary;
  SCION_ASSIGN_OR_RETURN(std::optional<std::string> model, metadata.GetOptionalString("tokenizer.ggml.model"));
  if (!model.has_value() || *model == "none" || *model == "no_vocab") return std::nullopt;
  vocabulary.model = *std::move(model);
  SCION_ASSIGN_OR_RETURN(std::optional<std::string> pre, metadata.GetOptionalString("tokenizer.ggml.pre"));
  vocabulary.pre = std::move(pre).value_or("");

  SCION_ASSIGN_OR_RETURN(const std::optional<GgufArray> tokens, metadata.GetOptionalArray(kTokens));
  if (!tokens.has_value()) return absl::DataLossError(metadata.Message(kTokens, "is missing"));
  SCION_ASSIGN_OR_RETURN(const std::optional<GgufArray> scores, metadata.GetOptionalArray(kScores));
  SCION_ASSIGN_OR_RETURN(const std::optional<GgufArray> types, metadata.GetOptionalArray(kTypes));
  SCION_ASSIGN_OR_RETURN(const std::optional<GgufArray> merges, metadata.GetOptionalArray(kMerges));
  SCION_RETURN_IF_ERROR(CheckLength(metadata, kScores, scores, *tokens));
  SCION_RETURN_IF_ERROR(CheckLength(metadata, kTypes, types, *tokens));
  // A vocabulary beyond the limit by itself is refused where it is read.
  if (merges.has_value() && tokens->count <= kMaxGgufArrayStrings &&
      merges->count > kMaxGgufArrayStrings - tokens->count) {
    return absl::ResourceExhaustedError(
        metadata.Message(kMerges, absl::StrCat(merges->count, " merges beside ", tokens->count,
                                               " tokens, more than the limit of ", kMaxGgufArrayStrings)));
  }
  SCION_ASSIGN_OR_RETURN(vocabulary.tokens, ReadGgufStrings(file, metadata, kTokens, *tokens));
  if (scores.has_value()) {
    SCION_ASSIGN_OR_RETURN(vocabulary.scores, ReadGgufFloats(file, metadata, kScores, *scores));
  }
  if (types.has_value()) {
    SCION_ASSIGN_OR_RETURN(vocabulary.types, ReadGgufInt32s(file, metadata, kTypes, *types));
  }
  if (merges.has_value()) {
    SCION_ASSIGN_OR_RETURN(vocabulary.merges, ReadGgufStrings(file, metadata, kMerges, *merges));
  }
  SCION_RETURN_IF_ERROR(CheckElements(metadata, vocabulary));

  SCION_ASSIGN_OR_RETURN(vocabulary.bos_token_id, GetTokenId(metadata, "tokenizer.ggml.bos_token_id", tokens->count));
  SCION_ASSIGN_OR_RETURN(vocabulary.eos_token_id, GetTokenId(metadata, "tokenizer.ggml.eos_token_id", tokens->count));
  SCION_ASSIGN_OR_RETURN(vocabulary.unknown_token_id,
                         GetTokenId(metadata, "tokenizer.ggml.unknown_token_id", tokens->count));
  SCION_ASSIGN_OR_RETURN(vocabulary.add_bos, metadata.GetOptionalBool("tokenizer.ggml.add_bos_token"));
  SCION_ASSIGN_OR_RETURN(vocabulary.add_eos, metadata.GetOptionalBool("tokenizer.ggml.add_eos_token"));
  SCION_ASSIGN_OR_RETURN(vocabulary.add_space_prefix, metadata.GetOptionalBool("tokenizer.ggml.add_space_prefix"));
  SCION_ASSIGN_OR_RETURN(vocabulary.chat_template, metadata.GetOptionalString("tokenizer.chat_template"));
  SCION_ASSIGN_OR_RETURN(vocabulary.nfc, metadata.GetOptionalBool("scion.tokenizer.nfc"));
  return vocabulary;
}

}  // namespace scion
