#include <gtest/gtest.h>

#include <random>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Json;

std::string BytesFromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

// Whether it is UTF-8 as nlohmann::json understands it, which is not our own reading of it.
bool IsUtf8(const std::string& text) {
  try {
    static_cast<void>(Json(text).dump());
    return true;
  } catch (const Json::exception&) {
    return false;
  }
}

TEST(IncrementalDetokenizerTest, EqualsPythonsDecodingWithReplacement) {
  // SmallTokenizer's ids 0 to 255 are the bytes.
  const auto tokenizer = Tokenizer::Parse(text_test::SmallTokenizer().dump(), "");
  ASSERT_TRUE(tokenizer.ok());
  const Json golden = text_test::ReadGolden("replacement.json");
  ASSERT_GT(golden.size(), 1000u);
  for (const Json& pair : golden) {
    IncrementalDetokenizer detokenizer(**tokenizer);
    std::string text;
    for (const char byte : BytesFromHex(pair[0].get<std::string>())) {
      detokenizer.Push(static_cast<uint8_t>(byte), text);
      EXPECT_TRUE(IsUtf8(text)) << pair;
    }
    detokenizer.Finish(text);
    EXPECT_EQ(text, pair[1].get<std::string>()) << pair;
  }
}

TEST(IncrementalDetokenizerTest, NeverEmitsHalfACharacter) {
  for (const std::string_view style : {"demo", "gpt2"}) {
    const auto tokenizer = text_test::LoadTokenizer(style);
    ASSERT_NE(tokenizer, nullptr);
    int held_back = 0;
    for (const Json& string : text_test::ReadGolden("strings.json")) {
      const std::string whole = string.get<std::string>();
      IncrementalDetokenizer detokenizer(*tokenizer, /*skip_special=*/false);
      std::string text;
      for (const int32_t id : text_test::Encode(*tokenizer, whole)) {
        const size_t before = text.size();
        detokenizer.Push(id, text);
        held_back += text.size() == before;
        ASSERT_TRUE(IsUtf8(text));
        ASSERT_EQ(text, whole.substr(0, text.size()));
      }
      detokenizer.Finish(text);
      ASSERT_EQ(text, whole);
    }
    EXPECT_GT(held_back, 100) << style;  // the strings do hold characters of several tokens
  }
}

TEST(IncrementalDetokenizerTest, SkipsSpecialTokensInsideACharacter) {
  const auto tokenizer = Tokenizer::Parse(text_test::SmallTokenizer().dump(), "");
  ASSERT_TRUE(tokenizer.ok());
  IncrementalDetokenizer skipping(**tokenizer);
  IncrementalDetokenizer showing(**tokenizer, /*skip_special=*/false);
  std::string skipped;
  std::string shown;
  for (const int32_t id : {0xC3, 258, 0xA9}) {
    skipping.Push(id, skipped);
    showing.Push(id, shown);
  }
  EXPECT_EQ(skipped, "\u00e9");
  EXPECT_EQ(shown, "\uFFFD<s>\uFFFD");
}

}  // namespace
}  // namespace scion
