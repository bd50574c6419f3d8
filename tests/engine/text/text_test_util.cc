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

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text, Tokenizer::EncodeOptions options) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, options, ids);
  return ids;
}

}  // namespace scion::text_test
