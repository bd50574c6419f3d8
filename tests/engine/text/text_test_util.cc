#include "tests/engine/text/text_test_util.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace scion::text_test {

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Json ReadGolden(std::string_view name) {
  return Json::parse(ReadFile(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/tokenizer" / name));
}

std::unique_ptr<Tokenizer> LoadTokenizer(std::string_view style) {
  const std::filesystem::path root(SCION_SOURCE_DIR);
  auto tokenizer = Tokenizer::Load(style == "demo" ? root / "deploy/demo" : root / "tests/golden/tokenizer" / style);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

Json SmallTokenizer() {
  Json vocab = Json::object();
  int shifted = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int character = printable ? byte : shifted++;
    std::string text;
    if (character < 0x80) {
      text.push_back(static_cast<char>(character));
    } else {
      text.push_back(static_cast<char>(0xC0 | character >> 6));
      text.push_back(static_cast<char>(0x80 | (character & 0x3F)));
    }
    vocab[text] = byte;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  const auto special = [](int id, const char* text) { return Json{{"id", id}, {"content", text}, {"special", true}}; };
  return Json{{"version", "1.0"},
              {"added_tokens", Json::array({special(258, "<s>"), special(259, "</s>")})},
              {"normalizer", nullptr},
              {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
              {"post_processor", nullptr},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array({"a b", "ab c"})}}}};
}

GgufVocabulary SmallByteLevelGguf() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  const Json json = SmallTokenizer();
  vocabulary.tokens.resize(260);
  vocabulary.types.assign(260, 1);
  for (const auto& [text, id] : json["model"]["vocab"].items()) vocabulary.tokens[id.get<size_t>()] = text;
  for (const Json& added : json["added_tokens"]) {
    vocabulary.tokens[added["id"].get<size_t>()] = added["content"].get<std::string>();
    vocabulary.types[added["id"].get<size_t>()] = 3;
  }
  vocabulary.merges = {"a b", "ab c"};
  vocabulary.bos_token_id = 258;
  vocabulary.eos_token_id = 259;
  return vocabulary;
}

GgufVocabulary SmallSentencePieceGguf() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  const auto add = [&](std::string text, float score, int32_t type) {
    vocabulary.tokens.push_back(std::move(text));
    vocabulary.scores.push_back(score);
    vocabulary.types.push_back(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("</s>", 0, 3);
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kDigits[] = "0123456789ABCDEF";
    add(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">", 0, 6);
  }
  const std::pair<const char*, float> pieces[] = {{"\u2581", -9}, {"a", -9},       {"b", -9},  {"c", -9},
                                                  {"d", -9},      {"ab", -2},      {"bc", -1}, {"cd", -2},
                                                  {"abc", -3},    {"\u2581a", -4}, {"aa", -5}, {"\u2581\u2581", -6},
                                                  {"\u00e9", -9}};
  for (const auto& [text, score] : pieces) add(text, score, 1);
  add("<|x|>", 0, 3);
  add("<tool>", 0, 4);
  vocabulary.bos_token_id = 1;
  vocabulary.eos_token_id = 2;
  vocabulary.unknown_token_id = 0;
  return vocabulary;
}

GgufVocabulary ReadGgufVocabulary(std::string_view name) {
  const Json json = Json::parse(
      ReadFile(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/gguf" / (std::string(name) + ".json")));
  GgufVocabulary vocabulary;
  vocabulary.model = json["model"];
  vocabulary.pre = json["pre"];
  vocabulary.tokens = json["tokens"];
  vocabulary.scores = json.value("scores", std::vector<float>());
  vocabulary.types = json["types"].get<std::vector<int32_t>>();
  vocabulary.merges = json.value("merges", std::vector<std::string>());
  vocabulary.bos_token_id = json["bos_token_id"].get<int32_t>();
  vocabulary.eos_token_id = json["eos_token_id"].get<int32_t>();
  if (json.contains("unknown_token_id")) vocabulary.unknown_token_id = json["unknown_token_id"].get<int32_t>();
  if (json.contains("add_space_prefix")) vocabulary.add_space_prefix = json["add_space_prefix"].get<bool>();
  return vocabulary;
}

std::unique_ptr<Tokenizer> LoadGguf(GgufVocabulary vocabulary) {
  auto tokenizer = Tokenizer::FromGguf(std::move(vocabulary));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text, Tokenizer::EncodeOptions options) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, options, ids);
  return ids;
}

}  // namespace scion::text_test
