#include "extract/gguf_vocabulary_of.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "engine/base/status.h"
#include "engine/text/bpe_merges.h"
#include "engine/text/byte_alphabet.h"
#include "engine/text/gguf_pre_tokenizer.h"
#include "engine/text/tokenizer.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

absl::Status NotInGguf(std::string_view what) {
  return absl::UnimplementedError(absl::StrCat(ToAbsl(what), ", which a GGUF file can't say"));
}

// Whether merging alone makes every token of its own bytes, so that taking pre-tokens whole (ignore_merges) is no
// difference.
bool MergesReachEveryToken(const TokenizerSpec& spec) {
  std::vector<int32_t> byte_ids(256, BpeMerges::kNoToken);
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (const VocabularyEntry& entry : spec.vocabulary) {
    std::optional<std::string> bytes = BytesOfAlphabetText(entry.text);
    if (!bytes) return false;
    if (bytes->size() == 1) byte_ids[static_cast<uint8_t>((*bytes)[0])] = entry.id;
    tokens.emplace_back(*std::move(bytes), entry.id);
  }
  const BpeMerges merges(std::move(byte_ids), spec.merges);
  BpeMerges::Scratch scratch;
  std::vector<int32_t> ids;
  return std::ranges::all_of(tokens, [&](const auto& token) {
    ids.clear();
    merges.Encode(token.first, scratch, ids);
    return ids.size() == 1 && ids[0] == token.second;
  });
}

absl::Status SetPreTokenizer(const TokenizerSpec& spec, GgufVocabulary& vocabulary) {
  const std::optional<std::string_view> name =
      FindGgufPreTokenizerName(spec.pre_tokenizer, spec.nfc, spec.ignore_merges);
  if (!name.has_value()) {
    std::string steps;
    for (const PreTokenizeStep& step : spec.pre_tokenizer) {
      const bool is_space = step.kind == PreTokenizeStep::Kind::kPrefixSpace;
      absl::StrAppend(&steps, steps.empty() ? "" : ", then ", is_space ? "add_prefix_space" : Quoted(step.pattern));
    }
    return absl::UnimplementedError(
        absl::StrCat("the pre-tokenizer is none for which GGUF has a name that this build knows: ", steps));
  }
  SCION_ASSIGN_OR_RETURN(const GgufPreTokenizer named, FindGgufPreTokenizer(*name));
  if (named.ignore_merges != spec.ignore_merges && !MergesReachEveryToken(spec)) {
    return NotInGguf(absl::StrCat("'ignore_merges' is ", spec.ignore_merges ? "true" : "false",
                                  " beside the pattern of ", Quoted(*name)));
  }
  vocabulary.pre = std::string(*name);
  if (named.nfc != spec.nfc) vocabulary.nfc = spec.nfc;
  return absl::OkStatus();
}

// An added token that is looked for in normalised text is looked for in raw text there. That is the same where
// normalising makes no difference to its text; nobody but Scion would normalise at all.
absl::Status RefuseNormalizedTokens(const TokenizerSpec& spec) {
  if (!spec.nfc) return absl::OkStatus();
  for (const AddedToken& token : spec.added_tokens) {
    const bool is_ascii = std::ranges::all_of(token.text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    if (token.normalized && !is_ascii) {
      return NotInGguf(absl::StrCat("the added token ", Quoted(token.text), " is looked for in normalised text"));
    }
  }
  return absl::OkStatus();
}

void SetTokens(const TokenizerSpec& spec, int vocab_size, GgufVocabulary& vocabulary) {
  vocabulary.tokens.resize(static_cast<size_t>(vocab_size));
  vocabulary.types.assign(static_cast<size_t>(vocab_size), static_cast<int32_t>(GgufTokenType::kUnused));
  absl::flat_hash_set<std::string_view> texts;
  const auto set = [&](const std::string& text, int32_t id, GgufTokenType type) {
    vocabulary.tokens[static_cast<size_t>(id)] = text;
    vocabulary.types[static_cast<size_t>(id)] = static_cast<int32_t>(type);
    texts.insert(text);
  };
  for (const VocabularyEntry& entry : spec.vocabulary) {
    if (!entry.text.empty()) set(entry.text, entry.id, GgufTokenType::kNormal);
  }
  for (const AddedToken& token : spec.added_tokens) {
    set(token.text, token.id, token.special ? GgufTokenType::kControl : GgufTokenType::kUserDefined);
  }
  for (int id = 0; id < vocab_size; ++id) {
    std::string& text = vocabulary.tokens[static_cast<size_t>(id)];
    if (!text.empty()) continue;
    text = absl::StrCat("[PAD", id, "]");
    while (texts.contains(text)) text += '_';  // readers want every text once
  }
}

absl::Status SetMerges(const TokenizerSpec& spec, GgufVocabulary& vocabulary) {
  absl::flat_hash_set<std::pair<int32_t, int32_t>> seen;
  // Of a pair that comes twice the last counts; llama.cpp would take the first.
  for (auto merge = spec.merges.rbegin(); merge != spec.merges.rend(); ++merge) {
    if (!seen.emplace(merge->left, merge->right).second) continue;
    const std::string& left = vocabulary.tokens[static_cast<size_t>(merge->left)];
    const std::string& right = vocabulary.tokens[static_cast<size_t>(merge->right)];
    if (left.find(' ') != left.npos || right.find(' ') != right.npos) {
      return NotInGguf(absl::StrCat("a merge of ", Quoted(left), " and ", Quoted(right), " with a space in it"));
    }
    vocabulary.merges.push_back(absl::StrCat(left, " ", right));
  }
  std::ranges::reverse(vocabulary.merges);
  return absl::OkStatus();
}

// What goes before or after a text: nothing, or the one token that GGUF has a key for.
absl::Status SetAffix(const std::vector<int32_t>& affix, std::string_view key, std::optional<int32_t>& id,
                      std::optional<bool>& add) {
  add = !affix.empty();
  if (affix.empty()) return absl::OkStatus();
  if (affix.size() > 1) return NotInGguf(absl::StrCat(affix.size(), " tokens on one side of a text"));
  if (id.has_value() && *id != affix[0]) {
    return NotInGguf(absl::StrCat("token ", affix[0], " on one side of a text, while the ", ToAbsl(key), " is ", *id));
  }
  id = affix[0];
  return absl::OkStatus();
}

bool Has(const fs::path& directory, std::string_view name) {
  std::error_code error;
  return fs::symlink_status(directory / name, error).type() != fs::file_type::not_found;
}

absl::StatusOr<std::string> ReadTextIfThere(const fs::path& directory, std::string_view name) {
  if (!Has(directory, name)) return std::string();
  return ReadTextInside(directory, name);
}

}  // namespace

absl::StatusOr<GgufVocabulary> GgufVocabularyOf(const TokenizerSpec& spec, int vocab_size) {
  if (spec.size > vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat("ids up to ", spec.size - 1, ", but the model's vocabulary has ", vocab_size));
  }
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  SCION_RETURN_IF_ERROR(SetPreTokenizer(spec, vocabulary));
  SCION_RETURN_IF_ERROR(RefuseNormalizedTokens(spec));
  SetTokens(spec, vocab_size, vocabulary);
  SCION_RETURN_IF_ERROR(SetMerges(spec, vocabulary));
  vocabulary.bos_token_id = spec.bos_token_id;
  vocabulary.eos_token_id = spec.eos_token_id;
  SCION_RETURN_IF_ERROR(SetAffix(spec.prefix, "BOS", vocabulary.bos_token_id, vocabulary.add_bos));
  SCION_RETURN_IF_ERROR(SetAffix(spec.suffix, "EOS", vocabulary.eos_token_id, vocabulary.add_eos));
  vocabulary.chat_template = spec.chat_template;
  return vocabulary;
}

absl::StatusOr<std::optional<GgufVocabulary>> GgufVocabularyOf(const Checkpoint& checkpoint) {
  if (checkpoint.is_gguf()) {
    if (checkpoint.vocabulary() == nullptr) return std::nullopt;
    return *checkpoint.vocabulary();
  }
  const fs::path& directory = checkpoint.directory();
  SCION_ASSIGN_OR_RETURN(const std::string tokenizer_json, ReadTextIfThere(directory, "tokenizer.json"));
  if (tokenizer_json.empty()) {
    if (!Has(directory, "tokenizer.model")) return std::nullopt;
    return absl::UnimplementedError(absl::StrCat((directory / "tokenizer.model").string(),
                                                 ": a tokenizer without tokenizer.json (SentencePiece's) is not "
                                                 "supported"));
  }
  SCION_ASSIGN_OR_RETURN(const std::string config_json, ReadTextIfThere(directory, "tokenizer_config.json"));
  const auto make = [&]() -> absl::StatusOr<GgufVocabulary> {
    SCION_ASSIGN_OR_RETURN(const TokenizerSpec spec, ReadTokenizerSpec(tokenizer_json, config_json));
    SCION_ASSIGN_OR_RETURN(GgufVocabulary vocabulary, GgufVocabularyOf(spec, checkpoint.spec().vocab_size));
    // Whatever its reader would refuse is refused here.
    SCION_RETURN_IF_ERROR(Tokenizer::FromGguf(vocabulary).status());
    return vocabulary;
  };
  absl::StatusOr<GgufVocabulary> vocabulary = make();
  if (!vocabulary.ok()) return Annotate(vocabulary.status(), (directory / "tokenizer.json").string());
  if (!vocabulary->chat_template.has_value()) {
    SCION_ASSIGN_OR_RETURN(std::string chat_template, ReadTextIfThere(directory, "chat_template.jinja"));
    if (!chat_template.empty()) vocabulary->chat_template = std::move(chat_template);
  }
  return *std::move(vocabulary);
}

}  // namespace scion
