#include "engine/text/tokenizer_files.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/text/gguf_spec.h"
#include "engine/text/utf8.h"

namespace scion {
namespace {

// Every text has been checked to be UTF-8.
std::string Text(std::string_view text) { return Json(text).dump(); }

class Writer {
 public:
  explicit Writer(const TokenizerSpec& spec) : spec_(spec), text_of_id_(static_cast<size_t>(spec.size)) {}

  absl::StatusOr<TokenizerFiles> Write() {
    SCION_RETURN_IF_ERROR(NameIds());
    TokenizerFiles files;
    std::string& out = files.tokenizer_json;
    absl::StrAppend(&out, "{\n \"version\": \"1.0\",\n \"truncation\": null,\n \"padding\": null,\n \"added_tokens\": ",
                    AddedTokens().dump(), ",\n \"normalizer\": ", spec_.nfc ? R"({"type": "NFC"})" : "null",
                    ",\n \"pre_tokenizer\": ", PreTokenizer().dump());
    SCION_ASSIGN_OR_RETURN(const Json post_processor, PostProcessor());
    absl::StrAppend(&out, ",\n \"post_processor\": ", post_processor.dump(), ",\n \"decoder\": ", ByteLevel().dump());
    SCION_RETURN_IF_ERROR(AppendModel(out));
    out += "\n}\n";
    SCION_ASSIGN_OR_RETURN(const Json config, Config());
    files.tokenizer_config_json = config.dump(1) + "\n";
    return files;
  }

 private:
  absl::Status NameIds() {
    const auto name = [this](const std::string& text, int32_t id) -> absl::Status {
      if (ValidUtf8Prefix(text) != text.size()) {
        return absl::InvalidArgumentError(absl::StrCat("token ", id, ": ", Quoted(text), " is not UTF-8"));
      }
      text_of_id_[static_cast<size_t>(id)] = text;
      return absl::OkStatus();
    };
    for (const VocabularyEntry& entry : spec_.vocabulary) SCION_RETURN_IF_ERROR(name(entry.text, entry.id));
    for (const AddedToken& token : spec_.added_tokens) SCION_RETURN_IF_ERROR(name(token.text, token.id));
    return absl::OkStatus();
  }

  absl::StatusOr<std::string_view> TextOf(int32_t id, std::string_view what) const {
    const std::string_view text = text_of_id_[static_cast<size_t>(id)];
    if (!text.empty()) return text;
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " is token ", id, ", which has no text"));
  }

  Json AddedTokens() const {
    std::vector<const AddedToken*> tokens;
    for (const AddedToken& token : spec_.added_tokens) tokens.push_back(&token);
    std::ranges::sort(tokens, {}, &AddedToken::id);
    Json list = Json::array();
    for (const AddedToken* token : tokens) {
      list.push_back({{"id", token->id},
                      {"content", token->text},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", token->normalized},
                      {"special", token->special}});
    }
    return list;
  }

  // The byte alphabet alone, as a pre-tokenizer, a post-processor that adds nothing, and a decoder.
  static Json ByteLevel() {
    return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  }

  Json PreTokenizer() const {
    Json steps = Json::array();
    // A GGUF vocabulary's pre-tokenizer is a row of patterns.
    for (const PreTokenizeStep& step : spec_.pre_tokenizer) {
      steps.push_back(
          {{"type", "Split"}, {"pattern", {{"Regex", step.pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
    }
    steps.push_back(ByteLevel());
    return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
  }

  absl::StatusOr<Json> PostProcessor() const {
    Json specials = Json::object();
    Json single = Json::array();
    const auto add = [&](const std::vector<int32_t>& ids) -> absl::Status {
      for (const int32_t id : ids) {
        SCION_ASSIGN_OR_RETURN(const std::string_view text, TextOf(id, "what goes around a text"));
        single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
        specials[std::string(text)] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
      }
      return absl::OkStatus();
    };
    if (spec_.prefix.empty() && spec_.suffix.empty()) return ByteLevel();
    SCION_RETURN_IF_ERROR(add(spec_.prefix));
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    SCION_RETURN_IF_ERROR(add(spec_.suffix));
    Json pair = single;
    for (Json piece : single) {
      for (Json& member : piece) member["type_id"] = 1;
      if (piece.contains("Sequence")) piece["Sequence"]["id"] = "B";
      pair.push_back(std::move(piece));
    }
    return Json{{"type", "TemplateProcessing"},
                {"single", std::move(single)},
                {"pair", std::move(pair)},
                {"special_tokens", std::move(specials)}};
  }

  // Line by line, so that a large vocabulary is in memory once.
  absl::Status AppendModel(std::string& out) const {
    absl::StrAppend(&out, ",\n \"model\": {\n  \"type\": \"BPE\",\n  \"dropout\": null,\n  \"unk_token\": null,\n",
                    "  \"continuing_subword_prefix\": null,\n  \"end_of_word_suffix\": null,\n  \"fuse_unk\": false,\n",
                    "  \"byte_fallback\": false,\n  \"ignore_merges\": ", spec_.ignore_merges ? "true" : "false",
                    ",\n  \"vocab\": {");
    bool first = true;
    for (size_t id = 0; id < text_of_id_.size(); ++id) {
      if (text_of_id_[id].empty()) continue;
      absl::StrAppend(&out, first ? "\n   " : ",\n   ", Text(text_of_id_[id]), ": ", id);
      first = false;
    }
    out += "\n  },\n  \"merges\": [";
    first = true;
    for (const BpeMerges::Merge& merge : spec_.merges) {
      SCION_ASSIGN_OR_RETURN(const std::string_view left, TextOf(merge.left, "half of a merge"));
      SCION_ASSIGN_OR_RETURN(const std::string_view right, TextOf(merge.right, "half of a merge"));
      absl::StrAppend(&out, first ? "\n   " : ",\n   ", Text(absl::StrCat(ToAbsl(left), " ", ToAbsl(right))));
      first = false;
    }
    out += "\n  ]\n }";
    return absl::OkStatus();
  }

  absl::StatusOr<Json> Config() const {
    Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
    for (const auto& [key, id] : {std::pair("bos_token", spec_.bos_token_id), {"eos_token", spec_.eos_token_id}}) {
      if (!id.has_value()) continue;
      SCION_ASSIGN_OR_RETURN(const std::string_view text, TextOf(*id, key));
      config[key] = text;
    }
    if (spec_.chat_template.has_value()) {
      if (ValidUtf8Prefix(*spec_.chat_template) != spec_.chat_template->size()) {
        return absl::InvalidArgumentError("chat_template is not UTF-8");
      }
      config["chat_template"] = *spec_.chat_template;
    }
    return config;
  }

  const TokenizerSpec& spec_;
  std::vector<std::string_view> text_of_id_;
};

}  // namespace

absl::StatusOr<TokenizerFiles> TokenizerFilesOfGguf(GgufVocabulary vocabulary) {
  const auto write = [&]() -> absl::StatusOr<TokenizerFiles> {
    SCION_RETURN_IF_ERROR(CheckGgufVocabulary(vocabulary));
    if (vocabulary.model != "gpt2") {
      return absl::UnimplementedError(
          absl::StrCat("model: ", Quoted(vocabulary.model), " has no tokenizer.json that this build reads"));
    }
    SCION_ASSIGN_OR_RETURN(const TokenizerSpec spec, ByteLevelSpecOfGguf(std::move(vocabulary)));
    return Writer(spec).Write();
  };
  absl::StatusOr<TokenizerFiles> files = write();
  if (!files.ok()) return Annotate(files.status(), "tokenizer.ggml");
  return files;
}

}  // namespace scion
