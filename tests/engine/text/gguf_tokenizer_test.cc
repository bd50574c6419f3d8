// What a GGUF file leaves unsaid, and what it says beside the tokens.
#include <gtest/gtest.h>

#include "engine/text/gguf_pre_tokenizer.h"
#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Encode;
using text_test::LoadGguf;
using Ids = std::vector<int32_t>;
constexpr Tokenizer::EncodeOptions kBoth{.parse_special = true, .add_special = true};

TEST(GgufTokenizerTest, ByteLevelAddsNoBosUnlessTheModelKindOrTheFileDoes) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "abc", kBoth), (Ids{257}));
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3", "tekken"}) {
    vocabulary.pre = pre;
    EXPECT_EQ(Encode(*LoadGguf(vocabulary), "abc", kBoth), (Ids{258, 257})) << pre;
  }
  vocabulary.add_bos = false;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "abc", kBoth), (Ids{257}));
  vocabulary.pre = "smollm";
  vocabulary.add_bos = true;
  vocabulary.add_eos = true;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "abc", kBoth), (Ids{258, 257, 259}));
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "<s>abc</s>", kBoth), (Ids{258, 257, 259}));
}

TEST(GgufTokenizerTest, TheFileMaySayThatTextIsNormalisedOrNot) {
  // "c" and a combining cedilla, in two characters and in one.
  const std::string apart = "c\u0327", joined = "\u00e7";
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  const Ids two = Encode(*LoadGguf(vocabulary), apart), one = Encode(*LoadGguf(vocabulary), joined);
  EXPECT_NE(one, two);
  vocabulary.nfc = true;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), apart), one);
  vocabulary.pre = "qwen2";
  vocabulary.nfc.reset();
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), apart), one);
  vocabulary.nfc = false;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), apart), two);
}

TEST(GgufTokenizerTest, SentencePieceAddsBosUnlessTheFileSaysNo) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "a", kBoth), (Ids{1, 268}));
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "<s>a", kBoth), (Ids{1, 268}));
  vocabulary.add_eos = true;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "a", kBoth), (Ids{1, 268, 2}));
  vocabulary.add_bos = false;
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "a", kBoth), (Ids{268, 2}));
  vocabulary.add_bos.reset();
  vocabulary.bos_token_id.reset();
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "a", kBoth), (Ids{268, 2}));
}

TEST(GgufTokenizerTest, ControlTokensAreSpecialAndUserDefinedOnesAreNot) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.tokens.push_back("<tool>");
  vocabulary.types.push_back(4);
  vocabulary.tokens.push_back("[PAD]");
  vocabulary.types.push_back(5);
  const auto tokenizer = LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->size(), 262);
  EXPECT_EQ(tokenizer->FindSpecial("<s>"), 258);
  EXPECT_EQ(tokenizer->FindSpecial("<tool>"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(258));
  EXPECT_FALSE(tokenizer->IsSpecial(260));
  EXPECT_EQ(Encode(*tokenizer, "<s>ab<tool>"), (Ids{258, 256, 260}));
  EXPECT_EQ(Encode(*tokenizer, "<s>ab<tool>", {.parse_special = false, .add_special = false}),
            (Ids{'<', 's', '>', 256, 260}));
  EXPECT_EQ(tokenizer->TokenBytes(260), "<tool>");
  EXPECT_EQ(tokenizer->TokenBytes(261), "");
  EXPECT_EQ(Encode(*tokenizer, "[PAD]"), (Ids{'[', 'P', 'A', 'D', ']'}));
  EXPECT_EQ(tokenizer->bos_token_id(), 258);
  EXPECT_EQ(tokenizer->eos_token_id(), 259);
}

// Found by fuzzing: a user-defined token is looked for in the text as it is; the escaped space before a text must not
// make one up, whose space would then stay when decoded.
TEST(GgufTokenizerTest, AnEscapedSpaceMakesUpNoUserDefinedToken) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  const auto without = LoadGguf(vocabulary);
  vocabulary.tokens.push_back("\u2581z");
  vocabulary.types.push_back(4);
  vocabulary.scores.push_back(1e6f);
  const auto with = LoadGguf(vocabulary);
  ASSERT_NE(with, nullptr);
  const Ids ids = Encode(*with, "z z");
  EXPECT_EQ(ids, Encode(*without, "z z"));
  EXPECT_EQ(with->Decode(ids, false), "z z");
}

TEST(GgufTokenizerTest, SmolLmCutsDigitsOneByOne) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.tokens.push_back("12");
  vocabulary.types.push_back(1);
  vocabulary.merges.push_back("1 2");
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "12"), (Ids{260}));
  vocabulary.pre = "smollm";
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "12"), (Ids{'1', '2'}));
}

TEST(GgufTokenizerTest, Llama3TakesAPreTokenThatIsATokenWhole) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.tokens.push_back("xyz");  // no merge leads there
  vocabulary.types.push_back(1);
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "xyz"), (Ids{'x', 'y', 'z'}));
  vocabulary.pre = "llama-bpe";
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "xyz"), (Ids{260}));
}

TEST(GgufTokenizerTest, QwenNormalises) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  EXPECT_EQ(Encode(*LoadGguf(vocabulary), "e\u0301"), (Ids{'e', 0xCC, 0x81}));
  for (const char* pre : {"qwen2", "olmo"}) {
    vocabulary.pre = pre;
    EXPECT_EQ(Encode(*LoadGguf(vocabulary), "e\u0301"), (Ids{0xC3, 0xA9})) << pre;
  }
}

TEST(GgufTokenizerTest, AByteWithoutATokenIsLeftOut) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.tokens[0xFF] = "";
  vocabulary.tokens[0x01] = "";
  const auto tokenizer = LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "\xFF"), Ids());
  EXPECT_EQ(Encode(*tokenizer, "a\x01"), (Ids{'a'}));
  EXPECT_EQ(Encode(*tokenizer, "\xFF\xFE\xFF"), (Ids{0xFE}));
}

TEST(GgufTokenizerTest, AnUnknownPreTokenizerIsNamed) {
  const auto found = FindGgufPreTokenizer("gpt-9");
  EXPECT_EQ(found.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(found.status().message().find("'gpt-9'"), absl::string_view::npos);
  EXPECT_TRUE(FindGgufPreTokenizer("").ok());
}

TEST(GgufTokenizerTest, WithoutTypesTextsAndIdsTellWhatIsNotPlain) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  vocabulary.types.clear();
  const auto tokenizer = LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_TRUE(tokenizer->IsSpecial(1));
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  EXPECT_FALSE(tokenizer->IsSpecial(272));
  EXPECT_EQ(Encode(*tokenizer, "a\xFF"), (Ids{268, 3 + 0xFF}));
}

}  // namespace
}  // namespace scion
