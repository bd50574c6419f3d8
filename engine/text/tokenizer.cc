#include "engine/text/tokenizer.h"

#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/text/byte_level_bpe.h"
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

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    bytes.append(TokenBytes(id));
  }
  return bytes;
}

}  // namespace scion
