#include "extract/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/base/status.h"
#include "engine/text/gguf_pre_tokenizer.h"
#include "engine/text/gguf_spec.h"
#include "engine/text/tokenizer.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson AddedTokenJson(const AddedToken& token) {
  return {{"id", token.id},  {"content", token.text},          {"single_word", false},    {"lstrip", false},
          {"rstrip", false}, {"normalized", token.normalized}, {"special", token.special}};
}

// Readers give an added token the next id of all, wherever the file says that it stands, unless the vocabulary has it.
bool FollowsVocabulary(size_t vocabulary_size, const std::vector<AddedToken>& added) {
  for (size_t i = 0; i < added.size(); ++i) {
    if (added[i].id != static_cast<int32_t>(vocabulary_size + i)) return false;
  }
  return true;
}

OrderedJson PreTokenizerJson(const std::vector<PreTokenizeStep>& steps) {
  OrderedJson parts = OrderedJson::array();
  for (const PreTokenizeStep& step : steps) {
    parts.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", step.pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  parts.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}});
  return {{"type", "Sequence"}, {"pretokenizers", std::move(parts)}};
}

OrderedJson PostProcessorJson(const TokenizerSpec& spec, const GgufVocabulary& vocabulary) {
  if (spec.prefix.empty() && spec.suffix.empty()) return nullptr;
  OrderedJson single = OrderedJson::array(), pair = OrderedJson::array(), tokens = OrderedJson::object();
  const auto add_tokens = [&](const std::vector<int32_t>& ids, int type_id, OrderedJson& pieces) {
    for (int32_t id : ids) {
      const std::string& text = vocabulary.tokens[static_cast<size_t>(id)];
      tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
      pieces.push_back({{"SpecialToken", {{"id", text}, {"type_id", type_id}}}});
    }
  };
  const auto add_text = [&](const char* name, int type_id, OrderedJson& pieces) {
    add_tokens(spec.prefix, type_id, pieces);
    pieces.push_back({{"Sequence", {{"id", name}, {"type_id", type_id}}}});
    add_tokens(spec.suffix, type_id, pieces);
  };
  add_text("A", 0, single);
  add_text("A", 0, pair);
  add_text("B", 1, pair);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
}

std::string Dump(const OrderedJson& json) {
  return json.dump(1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

absl::StatusOr<std::string> TokenizerJson(const GgufVocabulary& vocabulary) {
  if (vocabulary.model != "gpt2") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.model is ", Quoted(vocabulary.model),
                                                 "; only byte-level BPE, 'gpt2', becomes a tokenizer.json"));
  }
  GgufVocabulary checked = vocabulary;
  SCION_RETURN_IF_ERROR(CheckGgufVocabulary(checked));
  SCION_ASSIGN_OR_RETURN(const TokenizerSpec spec, ByteLevelSpecOfGguf(std::move(checked)));

  OrderedJson vocab = OrderedJson::object(), added = OrderedJson::array(), merges = OrderedJson::array();
  const bool in_vocabulary = !FollowsVocabulary(spec.vocabulary.size(), spec.added_tokens);
  std::vector<std::pair<int32_t, std::string_view>> tokens;
  for (const VocabularyEntry& entry : spec.vocabulary) tokens.emplace_back(entry.id, entry.text);
  for (const AddedToken& token : spec.added_tokens) {
    if (in_vocabulary) tokens.emplace_back(token.id, token.text);
    added.push_back(AddedTokenJson(token));
  }
  std::ranges::sort(tokens);
  OrderedJson::object_t& members = vocab.get_ref<OrderedJson::object_t&>();
  members.reserve(tokens.size());
  // Not by operator[], which looks through all that is there. No text comes twice: CheckGgufVocabulary saw to it.
  for (const auto& [id, text] : tokens) {
    members.emplace_back(std::string(text), id);
  }
  for (const std::string& merge : vocabulary.merges) merges.push_back(merge);

  const OrderedJson json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added)},
      {"normalizer", spec.nfc ? OrderedJson{{"type", "NFC"}} : OrderedJson(nullptr)},
      {"pre_tokenizer", PreTokenizerJson(spec.pre_tokenizer)},
      {"post_processor", PostProcessorJson(spec, vocabulary)},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", spec.ignore_merges},
        {"vocab", std::move(vocab)},
        {"merges", std::move(merges)}}}};
  std::string text = Dump(json);
  // Whatever the reader of tokenizer.json would refuse is refused here.
  SCION_RETURN_IF_ERROR(Tokenizer::Parse(text, TokenizerConfigJson(vocabulary)).status());
  return text;
}

std::string TokenizerConfigJson(const GgufVocabulary& vocabulary) {
  OrderedJson config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const auto set = [&](const char* key, std::optional<int32_t> id) {
    if (id.has_value()) config[key] = vocabulary.tokens[static_cast<size_t>(*id)];
  };
  set("bos_token", vocabulary.bos_token_id);
  set("eos_token", vocabulary.eos_token_id);
  if (vocabulary.chat_template.has_value()) config["chat_template"] = *vocabulary.chat_template;
  return Dump(config);
}

}  // namespace scion
