#include "engine/text/gguf_spec.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/base/status.h"
#include "engine/text/gguf_pre_tokenizer.h"

namespace scion {
namespace {

GgufTokenType TypeOf(const GgufVocabulary& vocabulary, size_t id) {
  return static_cast<GgufTokenType>(vocabulary.types[id]);
}

void FillInTypes(GgufVocabulary& vocabulary) {
  std::vector<int32_t>& types = vocabulary.types;
  types.assign(vocabulary.tokens.size(), static_cast<int32_t>(GgufTokenType::kNormal));
  if (vocabulary.model != "llama") return;
  for (size_t id = 0; id < types.size(); ++id) {
    if (ByteOfGgufToken(vocabulary.tokens[id])) types[id] = static_cast<int32_t>(GgufTokenType::kByte);
  }
  if (vocabulary.unknown_token_id) types[*vocabulary.unknown_token_id] = static_cast<int32_t>(GgufTokenType::kUnknown);
  for (const std::optional<int32_t>& id : {vocabulary.bos_token_id, vocabulary.eos_token_id}) {
    if (id) types[*id] = static_cast<int32_t>(GgufTokenType::kControl);
  }
}

absl::Status CheckLength(std::string_view key, size_t length, size_t tokens) {
  if (length == 0 || length == tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(key), " has ", length, " entries, but there are ", tokens, " tokens"));
}

absl::Status CheckId(std::string_view key, const std::optional<int32_t>& id, size_t tokens) {
  if (!id || (*id >= 0 && static_cast<size_t>(*id) < tokens)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(key), " is ", *id, ", but there are ", tokens, " tokens"));
}

absl::Status CheckTokens(const GgufVocabulary& vocabulary) {
  // Views into the vocabulary; unused ids may share a text.
  absl::flat_hash_map<std::string_view, size_t> id_of_text;
  id_of_text.reserve(vocabulary.tokens.size());
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& text = vocabulary.tokens[id];
    const int32_t type = vocabulary.types[id];
    if (type < static_cast<int32_t>(GgufTokenType::kNormal) || type > static_cast<int32_t>(GgufTokenType::kByte)) {
      return absl::InvalidArgumentError(absl::StrCat("token_type of token ", id, " is ", type, ", not 1 to 6"));
    }
    if (text.size() > kMaxGgufTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " has ", text.size(), " bytes, more than the limit of ", kMaxGgufTokenBytes));
    }
    if (text.empty() || TypeOf(vocabulary, id) == GgufTokenType::kUnused) continue;
    const auto [it, inserted] = id_of_text.emplace(text, id);
    if (!inserted) {
      return absl::InvalidArgumentError(absl::StrCat("tokens ", it->second, " and ", id, " are both ", Quoted(text)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BpeMerges::Merge>> ReadMerges(const GgufVocabulary& vocabulary) {
  absl::flat_hash_map<std::string_view, int32_t> id_of_text;
  id_of_text.reserve(vocabulary.tokens.size());
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (TypeOf(vocabulary, id) == GgufTokenType::kUnused) continue;
    id_of_text.emplace(vocabulary.tokens[id], static_cast<int32_t>(id));
  }
  std::vector<BpeMerges::Merge> merges;
  merges.reserve(vocabulary.merges.size());
  for (const std::string& text : vocabulary.merges) {
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", merges.size(), ": ", Quoted(text), " is not two tokens"));
    }
    const std::string_view left = std::string_view(text).substr(0, space);
    const std::string_view right = std::string_view(text).substr(space + 1);
    const std::string joined = absl::StrCat(ToAbsl(left), ToAbsl(right));
    int32_t ids[3];
    const std::string_view texts[3] = {left, right, joined};
    for (int i = 0; i < 3; ++i) {
      const auto it = id_of_text.find(texts[i]);
      if (it == id_of_text.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("merge ", merges.size(), ": ", Quoted(texts[i]), " is not a token"));
      }
      ids[i] = it->second;
    }
    merges.push_back({.left = ids[0], .right = ids[1], .joined = ids[2]});
  }
  return merges;
}

}  // namespace

absl::Status CheckGgufVocabulary(GgufVocabulary& vocabulary) {
  const size_t tokens = vocabulary.tokens.size();
  if (tokens == 0) return absl::InvalidArgumentError("tokens: empty");
  if (tokens > static_cast<size_t>(kMaxTokens)) {
    return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxTokens, " tokens"));
  }
  if (vocabulary.merges.size() > static_cast<size_t>(kMaxTokenizerValues)) {
    return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxTokenizerValues, " merges"));
  }
  if (vocabulary.chat_template && vocabulary.chat_template->size() > kMaxTokenizerConfigBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("chat_template: more than ", kMaxTokenizerConfigBytes, " bytes"));
  }
  SCION_RETURN_IF_ERROR(CheckLength("scores", vocabulary.scores.size(), tokens));
  SCION_RETURN_IF_ERROR(CheckLength("token_type", vocabulary.types.size(), tokens));
  SCION_RETURN_IF_ERROR(CheckId("bos_token_id", vocabulary.bos_token_id, tokens));
  SCION_RETURN_IF_ERROR(CheckId("eos_token_id", vocabulary.eos_token_id, tokens));
  SCION_RETURN_IF_ERROR(CheckId("unknown_token_id", vocabulary.unknown_token_id, tokens));
  if (vocabulary.types.empty()) FillInTypes(vocabulary);
  return CheckTokens(vocabulary);
}

std::optional<uint8_t> ByteOfGgufToken(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == kDigits.npos || low == kDigits.npos) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

absl::StatusOr<std::vector<AddedToken>> GgufAddedTokens(const GgufVocabulary& vocabulary) {
  std::vector<AddedToken> added;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const GgufTokenType type = TypeOf(vocabulary, id);
    const bool special = type == GgufTokenType::kControl || type == GgufTokenType::kUnknown;
    if (!special && type != GgufTokenType::kUserDefined) continue;
    const std::string& text = vocabulary.tokens[id];
    if (text.empty() || text.size() > kMaxAddedTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " is a control or user-defined token of ",
                                                     text.size(), " bytes, not 1 to ", kMaxAddedTokenBytes));
    }
    if (added.size() == kMaxAddedTokens) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than ", kMaxAddedTokens, " control and user-defined tokens"));
    }
    added.push_back({.text = text, .id = static_cast<int32_t>(id), .special = special, .normalized = false});
  }
  return added;
}

absl::StatusOr<TokenizerSpec> ByteLevelSpecOfGguf(GgufVocabulary vocabulary) {
  TokenizerSpec spec;
  spec.size = static_cast<int32_t>(vocabulary.tokens.size());
  SCION_ASSIGN_OR_RETURN(GgufPreTokenizer pre_tokenizer, FindGgufPreTokenizer(vocabulary.pre));
  spec.pre_tokenizer = std::move(pre_tokenizer.steps);
  spec.nfc = vocabulary.nfc.value_or(pre_tokenizer.nfc);
  spec.ignore_merges = pre_tokenizer.ignore_merges;
  if (vocabulary.add_space_prefix.value_or(false)) {
    return absl::UnimplementedError("add_space_prefix in a byte-level vocabulary is not supported");
  }
  SCION_ASSIGN_OR_RETURN(spec.merges, ReadMerges(vocabulary));
  SCION_ASSIGN_OR_RETURN(spec.added_tokens, GgufAddedTokens(vocabulary));
  SCION_RETURN_IF_ERROR(SetGgufAffixes(vocabulary, pre_tokenizer.add_bos, spec.prefix, spec.suffix));
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const GgufTokenType type = TypeOf(vocabulary, id);
    if (type == GgufTokenType::kByte) {
      return absl::UnimplementedError(
          absl::StrCat("token_type of token ", id, ": a byte token in a byte-level vocabulary is not supported"));
    }
    if (type != GgufTokenType::kNormal) continue;
    spec.vocabulary.push_back({.text = std::move(vocabulary.tokens[id]), .id = static_cast<int32_t>(id)});
  }
  spec.bos_token_id = vocabulary.bos_token_id;
  spec.eos_token_id = vocabulary.eos_token_id;
  spec.chat_template = std::move(vocabulary.chat_template);
  return spec;
}

absl::Status SetGgufAffixes(const GgufVocabulary& vocabulary, bool add_bos, std::vector<int32_t>& prefix,
                            std::vector<int32_t>& suffix) {
  if (vocabulary.add_bos.value_or(false) && !vocabulary.bos_token_id) {
    return absl::InvalidArgumentError("add_bos_token is set, but there is no bos_token_id");
  }
  if (vocabulary.add_eos.value_or(false) && !vocabulary.eos_token_id) {
    return absl::InvalidArgumentError("add_eos_token is set, but there is no eos_token_id");
  }
  if (vocabulary.add_bos.value_or(add_bos) && vocabulary.bos_token_id) prefix.push_back(*vocabulary.bos_token_id);
  if (vocabulary.add_eos.value_or(false)) suffix.push_back(*vocabulary.eos_token_id);
  return absl::OkStatus();
}

}  // namespace scion
