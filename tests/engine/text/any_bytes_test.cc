#include <gtest/gtest.h>

#include <random>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Encode;

// Without a normalizer or a prefix space, which change the text on purpose.
class AnyBytesTest : public testing::TestWithParam<std::string_view> {};

TEST_P(AnyBytesTest, RandomBytesComeBackAsTheyWere) {
  const auto tokenizer = text_test::LoadTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 60, '\0');
    // Half of them mostly ASCII, so that words and broken characters mix.
    for (char& byte : bytes) byte = static_cast<char>(i % 2 == 0 || random() % 4 == 0 ? random() : 'a' + random() % 8);
    const std::vector<int32_t> ids = Encode(*tokenizer, bytes, {.parse_special = i % 3 == 0, .add_special = false});
    ASSERT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), bytes);
    ASSERT_EQ(Encode(*tokenizer, bytes, {.parse_special = i % 3 == 0, .add_special = false}), ids);
  }
}

TEST_P(AnyBytesTest, EveryByteHasAToken) {
  const auto tokenizer = text_test::LoadTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    const std::vector<int32_t> ids = Encode(*tokenizer, text);
    ASSERT_EQ(ids.size(), 1u);
    EXPECT_EQ(tokenizer->TokenBytes(ids[0]), text);
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, AnyBytesTest, testing::Values("demo", "gpt2", "llama3"),
                         [](const auto& info) { return std::string(info.param); });

TEST(AnyBytesTest, BrokenBytesDoNotChangeTheirNeighbours) {
  for (const std::string_view style : text_test::kStyles) {
    const auto tokenizer = text_test::LoadTokenizer(style);
    ASSERT_NE(tokenizer, nullptr);
    const std::string left = "It's e\u0301 42\n";
    const std::string right = "world <|endoftext|>";
    std::vector<int32_t> expected = Encode(*tokenizer, left);
    for (const int32_t id : Encode(*tokenizer, "\xFF")) expected.push_back(id);
    for (const int32_t id : Encode(*tokenizer, right)) expected.push_back(id);
    EXPECT_EQ(Encode(*tokenizer, left + "\xFF" + right), expected) << style;
  }
}

// SmolLM2's own file lacks 21 bytes that its trainer has not seen. Hugging Face's `tokenizers` leave them out.
TEST(AnyBytesTest, ARareByteWithoutATokenIsLeftOut) {
  text_test::Json json = text_test::SmallTokenizer();
  ASSERT_EQ(json["model"]["vocab"].erase("\u0104"), 1u);  // byte 4
  const auto tokenizer = Tokenizer::Parse(json.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Encode(**tokenizer, "ab\x04x"), (std::vector<int32_t>{256, 'x'}));
}

TEST(AnyBytesTest, IdsOutsideTheVocabularyDecodeToNothing) {
  const auto tokenizer = text_test::LoadTokenizer("demo");
  ASSERT_NE(tokenizer, nullptr);
  for (const int32_t id : {-1, INT32_MIN, tokenizer->size(), INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

}  // namespace
}  // namespace scion
