#include <gtest/gtest.h>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using testing::Test;
using text_test::Encode;
using text_test::Json;

std::unique_ptr<Tokenizer> Parse(const Json& json, const Json& config = nullptr) {
  auto tokenizer = Tokenizer::Parse(json.dump(), config.is_null() ? "" : config.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

Json WithTemplate() {
  Json json = text_test::SmallTokenizer();
  json["post_processor"] = Json::parse(R"({"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "</s>", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]},
                         "</s>": {"id": "</s>", "ids": [259], "tokens": ["</s>"]}}})");
  return json;
}

using Ids = std::vector<int32_t>;

TEST(SpecialTokensTest, BosAndEosAreNeverDoubled) {
  const auto tokenizer = Parse(WithTemplate());
  ASSERT_NE(tokenizer, nullptr);
  const Tokenizer::EncodeOptions both{.parse_special = true, .add_special = true};
  EXPECT_EQ(Encode(*tokenizer, "a", both), (Ids{258, 'a', 259}));
  EXPECT_EQ(Encode(*tokenizer, "<s>a", both), (Ids{258, 'a', 259}));
  EXPECT_EQ(Encode(*tokenizer, "a</s>", both), (Ids{258, 'a', 259}));
  EXPECT_EQ(Encode(*tokenizer, "<s>a</s>", both), (Ids{258, 'a', 259}));
  EXPECT_EQ(Encode(*tokenizer, "a<s>", both), (Ids{258, 'a', 258, 259}));
  EXPECT_EQ(Encode(*tokenizer, "", both), (Ids{258, 259}));
  // Text that only looks like BOS is not one.
  EXPECT_EQ(Encode(*tokenizer, "<s>", {.parse_special = false, .add_special = true}), (Ids{258, '<', 's', '>', 259}));
  EXPECT_EQ(Encode(*tokenizer, "a", {.parse_special = true, .add_special = false}), (Ids{'a'}));
  // Appended to a prompt that has its BOS.
  Ids ids{258, 'x'};
  tokenizer->Encode("a", both, ids);
  EXPECT_EQ(ids, (Ids{258, 'x', 'a', 259}));
}

TEST(SpecialTokensTest, TheConfigMayAskForBosToo) {
  const Json config{{"bos_token", {{"content", "<s>"}}}, {"eos_token", "</s>"}, {"add_bos_token", true}};
  for (const Json& json : {text_test::SmallTokenizer(), WithTemplate()}) {
    const auto tokenizer = Parse(json, config);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->bos_token_id(), 258);
    EXPECT_EQ(tokenizer->eos_token_id(), 259);
    const Ids ids = Encode(*tokenizer, "a", {.parse_special = true, .add_special = true});
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 258), 1);
    EXPECT_EQ(ids[0], 258);
  }
  const auto silent = Parse(text_test::SmallTokenizer());
  ASSERT_NE(silent, nullptr);
  EXPECT_EQ(silent->bos_token_id(), std::nullopt);
  EXPECT_EQ(Encode(*silent, "a", {.parse_special = true, .add_special = true}), (Ids{'a'}));
}

TEST(SpecialTokensTest, TheDemoNamesItsTokens) {
  const auto tokenizer = text_test::LoadTokenizer("demo");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->size(), 8192);
  EXPECT_EQ(tokenizer->bos_token_id(), 8188);
  EXPECT_EQ(tokenizer->eos_token_id(), 8188);
  EXPECT_EQ(tokenizer->FindSpecial("<|im_end|>"), 8190);
  EXPECT_EQ(tokenizer->FindSpecial("a"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(8188));
  EXPECT_FALSE(tokenizer->IsSpecial(8187));
  EXPECT_EQ(tokenizer->TokenBytes(8188), "<|endoftext|>");
}

TEST(SpecialTokensTest, OfSeveralAtOnePlaceTheLongestIsTaken) {
  Json json = text_test::SmallTokenizer();
  json["added_tokens"].push_back({{"id", 260}, {"content", "<s><s>"}, {"special", true}});
  json["added_tokens"].push_back({{"id", 261}, {"content", "s>x"}, {"special", false}, {"normalized", false}});
  const auto tokenizer = Parse(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "<s><s><s>x"), (Ids{260, 258, 'x'}));
  EXPECT_EQ(Encode(*tokenizer, "<<s>"), (Ids{'<', 258}));
  // A token that is not special is a token in any text.
  EXPECT_EQ(Encode(*tokenizer, "<s>x", {.parse_special = false, .add_special = false}), (Ids{'<', 261}));
}

TEST(SpecialTokensTest, AnAddedTokenDecodesToItsOwnText) {
  Json json = text_test::SmallTokenizer();
  // These characters belong to the byte alphabet, where they mean the bytes 0x20 and 0xE9.
  json["added_tokens"].push_back({{"id", 260}, {"content", "<\u0120\u00e9>"}, {"special", true}});
  const auto tokenizer = Parse(json);
  ASSERT_NE(tokenizer, nullptr);
  const Ids ids = Encode(*tokenizer, "<\u0120\u00e9>");
  EXPECT_EQ(ids, (Ids{260}));
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), "<\u0120\u00e9>");
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/true), "");
}

TEST(SpecialTokensTest, MergesComeAsStringsOrPairs) {
  Json json = text_test::SmallTokenizer();
  json["model"]["merges"] = Json::parse(R"([["a", "b"], ["ab", "c"]])");
  const auto tokenizer = Parse(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "abcab"), (Ids{257, 256}));
  EXPECT_EQ(Encode(*Parse(text_test::SmallTokenizer()), "abcab"), (Ids{257, 256}));
}

TEST(SpecialTokensTest, WhiteSpaceIsWhatUnicodeSaysItIs) {
  // U+0085 is White_Space, U+180E is not; merges that join '!' with their first bytes show where the text was cut.
  Json json = text_test::SmallTokenizer();
  json["model"]["vocab"]["!\u00c2"] = 260;
  json["model"]["vocab"]["!\u00e1"] = 261;
  json["model"]["merges"].push_back("! \u00c2");
  json["model"]["merges"].push_back("! \u00e1");
  const auto tokenizer = Parse(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "!\u0085"), (Ids{'!', 0xC2, 0x85}));
  EXPECT_EQ(Encode(*tokenizer, "!\u180e"), (Ids{261, 0xA0, 0x8E}));
}

}  // namespace
}  // namespace scion
