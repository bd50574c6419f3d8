#include "engine/text/tokenizer_spec.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace scion {
namespace {

using Step = PreTokenizeStep;

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::Status Unsupported(std::string_view part, std::string_view what) {
  return absl::UnimplementedError(absl::StrCat(ToAbsl(part), " ", ToAbsl(what), " is not supported"));
}

absl::Status CheckObject(const Json& value, std::string_view part) {
  if (value.is_object()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(part), " must be an object"));
}

absl::StatusOr<std::optional<std::string>> GetOptionalString(const Json& object, std::string_view key) {
  if (FindMember(object, key) == nullptr) return std::nullopt;
  SCION_ASSIGN_OR_RETURN(std::string value, GetString(object, key));
  return value;
}

// A flag that, when set, asks for something that is not there.
absl::Status RefuseFlag(const Json& object, std::string_view part, std::string_view key) {
  SCION_ASSIGN_OR_RETURN(const std::optional<bool> flag, GetOptionalBool(object, key));
  return flag.value_or(false) ? Unsupported(part, key) : absl::OkStatus();
}

class SpecReader {
 public:
  absl::StatusOr<TokenizerSpec> Take() { return std::move(spec_); }

  absl::Status ReadTokenizer(const Json& root) {
    SCION_RETURN_IF_ERROR(CheckObject(root, "the document"));
    SCION_ASSIGN_OR_RETURN(const Json* model, GetObject(root, "model"));
    SCION_RETURN_IF_ERROR(Annotate(ReadModel(*model), "model"));
    if (const Json* added = FindMember(root, "added_tokens")) {
      SCION_RETURN_IF_ERROR(Annotate(ReadAddedTokens(*added), "added_tokens"));
    }
    SCION_RETURN_IF_ERROR(CheckIds());
    if (const Json* normalizer = FindMember(root, "normalizer")) {
      SCION_RETURN_IF_ERROR(ReadNormalizer(*normalizer));
    }
    const Json* pre_tokenizer = FindMember(root, "pre_tokenizer");
    if (pre_tokenizer == nullptr) return Unsupported("pre_tokenizer", "null");
    SCION_RETURN_IF_ERROR(ReadPreTokenizer(*pre_tokenizer));
    if (!byte_level_seen_) return Unsupported("pre_tokenizer", "without ByteLevel");
    if (const Json* post_processor = FindMember(root, "post_processor")) {
      SCION_RETURN_IF_ERROR(ReadPostProcessor(*post_processor));
    }
    return ReadDecoder(FindMember(root, "decoder"));
  }

  absl::Status ReadConfig(const Json& root) {
    SCION_RETURN_IF_ERROR(CheckObject(root, "the document"));
    SCION_ASSIGN_OR_RETURN(spec_.bos_token_id, ReadConfigToken(root, "bos_token"));
    SCION_ASSIGN_OR_RETURN(spec_.eos_token_id, ReadConfigToken(root, "eos_token"));
    if (const Json* chat_template = FindMember(root, "chat_template")) {
      // A list names several templates ("default", "tool_use"): the chat uses the default.
      if (chat_template->is_array()) {
        for (const Json& named : *chat_template) {
          SCION_RETURN_IF_ERROR(CheckObject(named, "an entry of chat_template"));
          SCION_ASSIGN_OR_RETURN(const std::string name, GetString(named, "name"));
          if (name != "default") continue;
          SCION_ASSIGN_OR_RETURN(spec_.chat_template, GetString(named, "template"));
        }
      } else {
        SCION_ASSIGN_OR_RETURN(spec_.chat_template, GetString(root, "chat_template"));
      }
    }
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> add_bos, GetOptionalBool(root, "add_bos_token"));
    if (add_bos.value_or(false) && spec_.prefix.empty() && spec_.bos_token_id) {
      spec_.prefix.push_back(*spec_.bos_token_id);
    }
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> add_eos, GetOptionalBool(root, "add_eos_token"));
    if (add_eos.value_or(false) && spec_.suffix.empty() && spec_.eos_token_id) {
      spec_.suffix.push_back(*spec_.eos_token_id);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ReadModel(const Json& model) {
    SCION_ASSIGN_OR_RETURN(const std::optional<std::string> type, GetOptionalString(model, "type"));
    // GPT-2's own file is older than the key.
    if (type.value_or("BPE") != "BPE") return Unsupported("type", Quoted(*type));
    SCION_ASSIGN_OR_RETURN(const std::optional<double> dropout, GetOptionalNumber(model, "dropout"));
    if (dropout.value_or(0.0) != 0.0) return Unsupported("dropout", "other than 0");
    SCION_RETURN_IF_ERROR(RefuseFlag(model, "model", "byte_fallback"));
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      SCION_ASSIGN_OR_RETURN(const std::optional<std::string> affix, GetOptionalString(model, key));
      if (!affix.value_or("").empty()) return Unsupported(key, Quoted(*affix));
    }
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> ignore_merges, GetOptionalBool(model, "ignore_merges"));
    spec_.ignore_merges = ignore_merges.value_or(false);
    SCION_ASSIGN_OR_RETURN(const Json* vocabulary, GetObject(model, "vocab"));
    SCION_RETURN_IF_ERROR(Annotate(ReadVocabulary(*vocabulary), "vocab"));
    SCION_ASSIGN_OR_RETURN(const Json* merges, GetArray(model, "merges"));
    return Annotate(ReadMerges(*merges), "merges");
  }

  absl::Status ReadVocabulary(const Json& vocabulary) {
    if (vocabulary.size() > static_cast<size_t>(kMaxTokens)) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxTokens, " tokens"));
    }
    id_of_text_.reserve(vocabulary.size());
    spec_.vocabulary.reserve(vocabulary.size());
    for (const auto& [text, value] : vocabulary.items()) {
      SCION_ASSIGN_OR_RETURN(const int64_t id, AsInt(value, text, 0, kMaxTokens - 1));
      spec_.vocabulary.push_back({.text = text, .id = static_cast<int32_t>(id)});
      id_of_text_.emplace(text, static_cast<int32_t>(id));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMerges(const Json& merges) {
    spec_.merges.reserve(merges.size());
    for (const Json& merge : merges) {
      const std::string where = absl::StrCat("merge ", spec_.merges.size());
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const std::string& text = merge.get_ref<const std::string&>();
        if (spec_.merges.empty() && text.starts_with("#version")) continue;
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          return absl::InvalidArgumentError(absl::StrCat(where, ": ", Quoted(text), " is not two tokens"));
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get_ref<const std::string&>();
        right = merge[1].get_ref<const std::string&>();
      } else {
        return absl::InvalidArgumentError(absl::StrCat(where, ": neither \"a b\" nor [\"a\", \"b\"]"));
      }
      int32_t ids[3];
      const std::string texts[3] = {left, right, left + right};
      for (int i = 0; i < 3; ++i) {
        const auto it = id_of_text_.find(texts[i]);
        if (it == id_of_text_.end()) {
          return absl::InvalidArgumentError(absl::StrCat(where, ": ", Quoted(texts[i]), " is not in the vocabulary"));
        }
        ids[i] = it->second;
      }
      spec_.merges.push_back({.left = ids[0], .right = ids[1], .joined = ids[2]});
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens(const Json& added_tokens) {
    if (!added_tokens.is_array()) return absl::InvalidArgumentError("must be an array");
    if (added_tokens.size() > kMaxAddedTokens) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxAddedTokens, " tokens"));
    }
    for (const Json& added : added_tokens) {
      SCION_RETURN_IF_ERROR(CheckObject(added, "an entry"));
      AddedToken token;
      SCION_ASSIGN_OR_RETURN(token.text, GetString(added, "content"));
      if (token.text.empty() || token.text.size() > kMaxAddedTokenBytes) {
        return absl::InvalidArgumentError(
            absl::StrCat("content ", Quoted(token.text), " must have 1 to ", kMaxAddedTokenBytes, " bytes"));
      }
      SCION_ASSIGN_OR_RETURN(const int64_t id, GetInt(added, "id", 0, kMaxTokens - 1));
      token.id = static_cast<int32_t>(id);
      SCION_ASSIGN_OR_RETURN(const std::optional<bool> special, GetOptionalBool(added, "special"));
      token.special = special.value_or(false);
      SCION_ASSIGN_OR_RETURN(const std::optional<bool> normalized, GetOptionalBool(added, "normalized"));
      token.normalized = normalized.value_or(!token.special);
      for (const std::string_view flag : {"lstrip", "rstrip", "single_word"}) {
        SCION_RETURN_IF_ERROR(RefuseFlag(added, Quoted(token.text), flag));
      }
      if (!added_texts_.insert(token.text).second) {
        return absl::InvalidArgumentError(absl::StrCat(Quoted(token.text), " twice"));
      }
      const auto in_vocabulary = id_of_text_.find(token.text);
      if (in_vocabulary != id_of_text_.end() && in_vocabulary->second != token.id) {
        return absl::InvalidArgumentError(
            absl::StrCat(Quoted(token.text), " has id ", token.id, ", in the vocabulary ", in_vocabulary->second));
      }
      spec_.added_tokens.push_back(std::move(token));
    }
    return absl::OkStatus();
  }

  // Every id belongs to one token, and there are not many more ids than tokens.
  absl::Status CheckIds() {
    absl::flat_hash_map<int32_t, const std::string*> text_of_id;
    text_of_id.reserve(spec_.vocabulary.size() + spec_.added_tokens.size());
    const auto add = [&](const std::string& text, int32_t id) {
      const auto [it, inserted] = text_of_id.emplace(id, &text);
      if (!inserted && *it->second != text) {
        return absl::InvalidArgumentError(
            absl::StrCat("id ", id, " belongs to both ", Quoted(*it->second), " and ", Quoted(text)));
      }
      spec_.size = std::max(spec_.size, id + 1);
      return absl::OkStatus();
    };
    for (const VocabularyEntry& entry : spec_.vocabulary) SCION_RETURN_IF_ERROR(add(entry.text, entry.id));
    for (const AddedToken& token : spec_.added_tokens) {
      SCION_RETURN_IF_ERROR(add(token.text, token.id));
      id_of_text_.emplace(token.text, token.id);
    }
    if (spec_.size > static_cast<int64_t>(text_of_id.size()) + kMaxUnusedIds) {
      return absl::InvalidArgumentError(
          absl::StrCat("the largest id is ", spec_.size - 1, ", but there are only ", text_of_id.size(), " tokens"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> TypeOf(const Json& part, std::string_view name) {
    SCION_RETURN_IF_ERROR(CheckObject(part, name));
    absl::StatusOr<std::string> type = GetString(part, "type");
    if (!type.ok()) return Annotate(type.status(), name);
    return type;
  }

  absl::Status ReadNormalizer(const Json& normalizer) {
    SCION_ASSIGN_OR_RETURN(const std::string type, TypeOf(normalizer, "normalizer"));
    if (type == "Sequence") {
      SCION_ASSIGN_OR_RETURN(const Json* parts, GetArray(normalizer, "normalizers"));
      for (const Json& part : *parts) SCION_RETURN_IF_ERROR(ReadNormalizer(part));
      return absl::OkStatus();
    }
    if (type != "NFC") return Unsupported("normalizer", Quoted(type));
    spec_.nfc = true;
    return absl::OkStatus();
  }

  absl::Status AddStep(Step step) {
    constexpr size_t kMaxSteps = 32;
    if (spec_.pre_tokenizer.size() == kMaxSteps) {
      return absl::ResourceExhaustedError(absl::StrCat("pre_tokenizer: more than ", kMaxSteps, " steps"));
    }
    spec_.pre_tokenizer.push_back(std::move(step));
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer(const Json& part) {
    SCION_ASSIGN_OR_RETURN(const std::string type, TypeOf(part, "pre_tokenizer"));
    if (type == "Sequence") {
      SCION_ASSIGN_OR_RETURN(const Json* parts, GetArray(part, "pretokenizers"));
      for (const Json& each : *parts) SCION_RETURN_IF_ERROR(ReadPreTokenizer(each));
      return absl::OkStatus();
    }
    // What comes after ByteLevel sees the byte alphabet, not the text.
    if (byte_level_seen_) return Unsupported("pre_tokenizer", Quoted(type) + " after ByteLevel");
    if (type == "Split") return ReadSplit(part);
    if (type == "Digits") {
      SCION_ASSIGN_OR_RETURN(const std::optional<bool> individual, GetOptionalBool(part, "individual_digits"));
      return AddStep({.kind = Step::Kind::kSplitRegex, .pattern = individual.value_or(false) ? "\\p{N}" : "\\p{N}+"});
    }
    if (type != "ByteLevel") return Unsupported("pre_tokenizer", Quoted(type));
    byte_level_seen_ = true;
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> prefix_space, GetOptionalBool(part, "add_prefix_space"));
    if (prefix_space.value_or(true)) SCION_RETURN_IF_ERROR(AddStep({.kind = Step::Kind::kPrefixSpace, .pattern = ""}));
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> use_regex, GetOptionalBool(part, "use_regex"));
    if (!use_regex.value_or(true)) return absl::OkStatus();
    return AddStep({.kind = Step::Kind::kSplitRegex, .pattern = std::string(kGpt2Pattern)});
  }

  absl::Status ReadSplit(const Json& split) {
    SCION_ASSIGN_OR_RETURN(const std::string behavior, GetString(split, "behavior"));
    if (behavior != "Isolated") return Unsupported("pre_tokenizer Split: behavior", Quoted(behavior));
    // `invert` swaps what is a match and what lies between; isolated, both are pieces.
    SCION_ASSIGN_OR_RETURN(const Json* pattern, GetObject(split, "pattern"));
    SCION_ASSIGN_OR_RETURN(const std::optional<std::string> regex, GetOptionalString(*pattern, "Regex"));
    if (regex) return AddStep({.kind = Step::Kind::kSplitRegex, .pattern = *regex});
    SCION_ASSIGN_OR_RETURN(const std::string literal, GetString(*pattern, "String"));
    return AddStep({.kind = Step::Kind::kSplitLiteral, .pattern = literal});
  }

  absl::Status ReadPostProcessor(const Json& part) {
    SCION_ASSIGN_OR_RETURN(const std::string type, TypeOf(part, "post_processor"));
    if (type == "Sequence") {
      SCION_ASSIGN_OR_RETURN(const Json* parts, GetArray(part, "processors"));
      for (const Json& each : *parts) SCION_RETURN_IF_ERROR(ReadPostProcessor(each));
      return absl::OkStatus();
    }
    if (type == "ByteLevel") return absl::OkStatus();  // only shifts offsets
    if (type != "TemplateProcessing") return Unsupported("post_processor", Quoted(type));
    if (template_seen_) return Unsupported("post_processor", "with two templates");
    template_seen_ = true;
    return Annotate(ReadTemplate(part), "post_processor TemplateProcessing");
  }

  absl::Status ReadTemplate(const Json& part) {
    SCION_ASSIGN_OR_RETURN(const Json* single, GetArray(part, "single"));
    bool text_seen = false;
    for (const Json& piece : *single) {
      SCION_RETURN_IF_ERROR(CheckObject(piece, "a piece"));
      if (const Json* sequence = FindMember(piece, "Sequence")) {
        SCION_RETURN_IF_ERROR(CheckObject(*sequence, "Sequence"));
        if (text_seen) return Unsupported("'single'", "with the text twice");
        text_seen = true;
        continue;
      }
      SCION_ASSIGN_OR_RETURN(const Json* special, GetObject(piece, "SpecialToken"));
      SCION_ASSIGN_OR_RETURN(const std::string name, GetString(*special, "id"));
      SCION_ASSIGN_OR_RETURN(const Json* specials, GetObject(part, "special_tokens"));
      SCION_ASSIGN_OR_RETURN(const Json* definition, GetObject(*specials, name));
      SCION_ASSIGN_OR_RETURN(const Json* ids, GetArray(*definition, "ids"));
      for (const Json& value : *ids) {
        SCION_ASSIGN_OR_RETURN(const int64_t id, AsInt(value, name, 0, int64_t{spec_.size} - 1));
        std::vector<int32_t>& affix = text_seen ? spec_.suffix : spec_.prefix;
        if (affix.size() == kMaxAffixTokens) return absl::ResourceExhaustedError("more than 16 tokens on one side");
        affix.push_back(static_cast<int32_t>(id));
      }
    }
    if (!text_seen) return absl::InvalidArgumentError("'single' leaves the text out");
    return absl::OkStatus();
  }

  absl::Status ReadDecoder(const Json* decoder) {
    if (decoder == nullptr) return Unsupported("decoder", "null");
    SCION_ASSIGN_OR_RETURN(const std::string type, TypeOf(*decoder, "decoder"));
    if (type != "ByteLevel") return Unsupported("decoder", Quoted(type));
    return absl::OkStatus();
  }

  // A token's text, or an object with the text as "content".
  absl::StatusOr<std::optional<int32_t>> ReadConfigToken(const Json& root, std::string_view key) {
    const Json* value = FindMember(root, key);
    if (value == nullptr) return std::nullopt;
    std::string text;
    if (value->is_object()) {
      SCION_ASSIGN_OR_RETURN(text, GetString(*value, "content"));
    } else {
      SCION_ASSIGN_OR_RETURN(text, GetString(root, key));
    }
    const auto it = id_of_text_.find(text);
    if (it == id_of_text_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToAbsl(key), " ", Quoted(text), " is not a token of tokenizer.json"));
    }
    return it->second;
  }

  TokenizerSpec spec_;
  absl::flat_hash_map<std::string, int32_t> id_of_text_;
  absl::flat_hash_set<std::string> added_texts_;
  bool byte_level_seen_ = false;
  bool template_seen_ = false;
};

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(std::string_view tokenizer_json,
                                                std::string_view tokenizer_config_json) {
  SpecReader reader;
  constexpr std::string_view kTokenizer = "tokenizer.json";
  {
    SCION_ASSIGN_OR_RETURN(
        const Json root,
        ParseJson(tokenizer_json, kTokenizer, {.max_bytes = kMaxTokenizerBytes, .max_values = kMaxTokenizerValues}));
    SCION_RETURN_IF_ERROR(Annotate(reader.ReadTokenizer(root), kTokenizer));
  }
  if (!tokenizer_config_json.empty()) {
    constexpr std::string_view kConfig = "tokenizer_config.json";
    SCION_ASSIGN_OR_RETURN(const Json root,
                           ParseJson(tokenizer_config_json, kConfig, {.max_bytes = kMaxTokenizerConfigBytes}));
    SCION_RETURN_IF_ERROR(Annotate(reader.ReadConfig(root), kConfig));
  }
  return reader.Take();
}

}  // namespace scion
