#include "engine/text/tokenizer.h"

#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/text/byte_level_bpe.h"
#include "engine/text/gguf_spec.h"
#include "engine/text/sentence_piece_bpe.h"
#include "engine/text/token_text.h"
#include "engine/text/tokenizer_spec.h"

namespace scion {

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& directory) {
  SCION_ASSIGN_OR_RETURN(const std::string tokenizer_json,
                         ReadTextFile(directory / "tokenizer.json", kMaxTokenizerBytes));
  absl::StatusOr<std::string> config_json = ReadTextFile(directory / "tokenizer_config.json", kMaxTokenizerConfigBytes);
  if (absl::IsNotFound(config_json.status())) {
    config_json = "";
  } else if (!config_json.ok()) {
    return config_json.status();
  } else if (config_json->empty()) {
    return absl::InvalidArgumentError(absl::StrCat((directory / "tokenizer_config.json").string(), ": empty"));
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Parse(tokenizer_json, *config_json);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), directory.string());
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view tokenizer_json,
                                                            std::string_view tokenizer_config_json) {
  SCION_ASSIGN_OR_RETURN(TokenizerSpec spec, ReadTokenizerSpec(tokenizer_json, tokenizer_config_json));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ByteLevelBpe::Create(std::move(spec));
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "tokenizer.json");
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(GgufVocabulary vocabulary) {
  const auto read = [&]() -> absl::StatusOr<std::unique_ptr<Tokenizer>> {
    SCION_RETURN_IF_ERROR(CheckGgufVocabulary(vocabulary));
    if (vocabulary.model == "llama") return SentencePieceBpe::Create(std::move(vocabulary));
    if (vocabulary.model != "gpt2") {
      return absl::UnimplementedError(absl::StrCat("model: ", Quoted(vocabulary.model), " is not supported"));
    }
    SCION_ASSIGN_OR_RETURN(TokenizerSpec spec, ByteLevelSpecOfGguf(std::move(vocabulary)));
    return ByteLevelBpe::Create(std::move(spec));
  };
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = read();
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "tokenizer.ggml");
  return tokenizer;
}

bool Tokenizer::SpacePrefixAfter(std::optional<int32_t>) const { return false; }

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special, TextPart part) const {
  std::string bytes;
  bool drop_space = part == TextPart::kBeginning && SpacePrefixAfter(std::nullopt);
  for (const int32_t id : ids) AppendTokenText(*this, id, skip_special, drop_space, bytes);
  return bytes;
}

void AppendTokenText(const Tokenizer& tokenizer, int32_t id, bool skip_special, bool& drop_space, std::string& out) {
  std::string_view bytes = tokenizer.TokenBytes(id);
  if (bytes.empty()) return;
  const bool added = tokenizer.SpacePrefixAfter(id);  // no space goes before an added token, which may begin with one
  if (drop_space && !added && bytes[0] == ' ') bytes.remove_prefix(1);
  drop_space = added;
  if (!skip_special || !tokenizer.IsSpecial(id)) out.append(bytes);
}

}  // namespace scion
