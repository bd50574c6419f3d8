#include <gtest/gtest.h>

#include <random>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Encode;
using text_test::LoadGguf;
using Ids = std::vector<int32_t>;

constexpr int32_t kFirstByte = 3;
enum Piece : int32_t {
  kSpace = 259,
  kA,
  kB,
  kC,
  kD,
  kAb,
  kBc,
  kCd,
  kAbc,
  kSpaceA,
  kAa,
  kTwoSpaces,
  kEAcute,
  kX,
  kTool
};

std::unique_ptr<Tokenizer> Small(bool add_space_prefix) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  vocabulary.add_space_prefix = add_space_prefix;
  return LoadGguf(std::move(vocabulary));
}

std::string RandomBytes(std::mt19937& random, int i) {
  std::string bytes(random() % 60, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(i % 2 == 0 || random() % 5 == 0 ? random() : " abcde "[random() % 7]);
  }
  return bytes;
}

TEST(SentencePieceBpeTest, TheHighestScoreIsJoinedFirstTheLeftmostAmongEquals) {
  const auto tokenizer = Small(/*add_space_prefix=*/false);
  ASSERT_NE(tokenizer, nullptr);
  // bc (-1) goes before ab and cd (-2); then abc (-3) is there, but no bcd.
  EXPECT_EQ(Encode(*tokenizer, "abcd"), (Ids{kAbc, kD}));
  EXPECT_EQ(Encode(*tokenizer, "bcd"), (Ids{kBc, kD}));
  EXPECT_EQ(Encode(*tokenizer, "ab"), (Ids{kAb}));
  EXPECT_EQ(Encode(*tokenizer, "aaa"), (Ids{kAa, kA}));
  EXPECT_EQ(Encode(*tokenizer, "aaaa"), (Ids{kAa, kAa}));
  EXPECT_EQ(Encode(*tokenizer, "ab cd"), (Ids{kAb, kSpace, kCd}));
}

TEST(SentencePieceBpeTest, WhatNoTokenHoldsGoesThroughBytes) {
  const auto tokenizer = Small(/*add_space_prefix=*/false);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "\u00e9"), (Ids{kEAcute}));
  EXPECT_EQ(Encode(*tokenizer, "\u00e8"), (Ids{kFirstByte + 0xC3, kFirstByte + 0xA8}));
  EXPECT_EQ(Encode(*tokenizer,
                   "a\xFF\xC3"
                   "b"),
            (Ids{kA, kFirstByte + 0xFF, kFirstByte + 0xC3, kB}));
  // Half of a character is bytes, though whole it would be a token.
  EXPECT_EQ(Encode(*tokenizer, "\xC3"), (Ids{kFirstByte + 0xC3}));
  EXPECT_EQ(Encode(*tokenizer, "\n"), (Ids{kFirstByte + '\n'}));
  // A byte token's text is text.
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, "<0x0A>"), false), "<0x0A>");
}

TEST(SentencePieceBpeTest, WithoutByteTokensARunOfUnknownsIsOneUnknownToken) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  for (int32_t& type : vocabulary.types) type = type == 6 ? 5 : type;
  const auto tokenizer = LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer,
                   "a\u4e2d\u6587\xFF"
                   "b"),
            (Ids{kSpaceA, 0, kB}));
  EXPECT_EQ(Encode(*tokenizer, "\u4e2da\u4e2d"), (Ids{kSpace, 0, kA, 0}));
  // A space after an unknown token is the text's own.
  EXPECT_EQ(tokenizer->Decode(Ids{kSpaceA, 0, kSpaceA}, false), "a<unk> a");
}

TEST(SentencePieceBpeTest, TheSpaceGoesBeforeTextAndBehindAddedTokens) {
  const auto tokenizer = Small(/*add_space_prefix=*/true);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "a"), (Ids{kSpaceA}));
  EXPECT_EQ(Encode(*tokenizer, " a"), (Ids{kSpace, kSpaceA}));
  EXPECT_EQ(Encode(*tokenizer, ""), Ids());
  EXPECT_EQ(Encode(*tokenizer, "<|x|>a<tool>b"), (Ids{kX, kSpaceA, kTool, kSpace, kB}));
  const auto without = Small(/*add_space_prefix=*/false);
  ASSERT_NE(without, nullptr);
  EXPECT_EQ(Encode(*without, "<|x|>a<tool>b"), (Ids{kX, kA, kTool, kB}));
}

TEST(SentencePieceBpeTest, DecodingTakesAwayOnlyTheSpaceThatEncodingAdded) {
  const auto tokenizer = Small(/*add_space_prefix=*/true);
  const auto without = Small(/*add_space_prefix=*/false);
  ASSERT_NE(tokenizer, nullptr);
  ASSERT_NE(without, nullptr);
  for (const char* text : {"a", " a", "  a ", "a b", "<|x|> a", "<|x|>a<tool>  b<tool>", " ", ""}) {
    EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text), /*skip_special=*/false), text);
    EXPECT_EQ(without->Decode(Encode(*without, text), /*skip_special=*/false), text);
  }
  const Ids ids{kSpaceA, kX, kSpaceA, kSpaceA, kTool, kSpace, kB};
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), "a<|x|>a a<tool>b");
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/true), "aa a<tool>b");
  EXPECT_EQ(without->Decode(ids, /*skip_special=*/false), " a<|x|> a a<tool> b");
  // Text that goes on a prompt keeps the space between the two.
  EXPECT_EQ(tokenizer->Decode(ids, /*skip_special=*/false, TextPart::kContinuation), " a<|x|>a a<tool>b");
}

TEST(SentencePieceBpeTest, AnAddedTokenKeepsItsOwnSpace) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  vocabulary.tokens[kTool] = " <tool>";
  const auto tokenizer = LoadGguf(std::move(vocabulary));
  ASSERT_NE(tokenizer, nullptr);
  for (const char* text : {" <tool>", " <tool> <tool>a", "<|x|> <tool> a"}) {
    EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text), /*skip_special=*/false), text);
  }
}

TEST(SentencePieceBpeTest, AStreamGivesTheSameTextAsOneDecoding) {
  std::mt19937 random(5);
  for (const bool add_space_prefix : {false, true}) {
    const auto tokenizer = Small(add_space_prefix);
    ASSERT_NE(tokenizer, nullptr);
    for (int i = 0; i < 2000; ++i) {
      Ids ids(random() % 12);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % 3 == 0 ? random() % 275 : kSpace + random() % 16);
      for (const TextPart part : {TextPart::kBeginning, TextPart::kContinuation}) {
        for (const bool skip_special : {false, true}) {
          const std::string bytes = tokenizer->Decode(ids, skip_special, part);
          // The bytes, one by one, through a tokenizer that changes nothing.
          const auto plain = Small(false);
          IncrementalDetokenizer by_byte(*plain);
          std::string expected;
          for (const char byte : bytes) by_byte.Push(kFirstByte + static_cast<uint8_t>(byte), expected);
          by_byte.Finish(expected);
          IncrementalDetokenizer detokenizer(*tokenizer, skip_special, part);
          std::string text;
          for (const int32_t id : ids) detokenizer.Push(id, text);
          detokenizer.Finish(text);
          ASSERT_EQ(text, expected);
        }
      }
    }
  }
}

TEST(SentencePieceBpeTest, RandomBytesComeBackAsTheyWere) {
  std::mt19937 random(4);
  for (const bool add_space_prefix : {false, true}) {
    GgufVocabulary vocabulary = text_test::ReadGgufVocabulary("spm");
    vocabulary.add_space_prefix = add_space_prefix;
    const auto trained = LoadGguf(std::move(vocabulary));
    const auto small = Small(add_space_prefix);
    ASSERT_NE(trained, nullptr);
    ASSERT_NE(small, nullptr);
    for (int i = 0; i < 2000; ++i) {
      const std::string bytes = RandomBytes(random, i);
      if (bytes.find("\u2581") != std::string::npos) continue;  // becomes a space
      for (const Tokenizer* tokenizer : {trained.get(), small.get()}) {
        const Ids ids = Encode(*tokenizer, bytes, {.parse_special = i % 3 == 0, .add_special = false});
        ASSERT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), bytes);
      }
    }
  }
}

TEST(SentencePieceBpeTest, UnusedAndForeignIdsDecodeToNothing) {
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  vocabulary.types[kCd] = 5;
  const auto tokenizer = LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "<|x|>cd"), (Ids{kX, kSpace, kC, kD}));
  for (const int32_t id : {int32_t{kCd}, -1, INT32_MIN, tokenizer->size(), INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

// The algorithm as it is told: look for the best pair, join it, again.
Ids EncodeNaively(const GgufVocabulary& vocabulary, std::vector<std::string> symbols) {
  const auto find = [&](const std::string& text) -> std::optional<int32_t> {
    for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      if (vocabulary.types[id] == 1 && vocabulary.tokens[id] == text) return static_cast<int32_t>(id);
    }
    return std::nullopt;
  };
  while (true) {
    size_t best = symbols.size();
    float best_score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto id = find(symbols[i] + symbols[i + 1]);
      if (!id || (best != symbols.size() && vocabulary.scores[*id] <= best_score)) continue;
      best = i;
      best_score = vocabulary.scores[*id];
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  Ids ids;
  for (const std::string& symbol : symbols) ids.push_back(*find(symbol));
  return ids;
}

TEST(SentencePieceBpeTest, EqualsTheNaiveAlgorithmWithManyEqualScores) {
  std::mt19937 random(6);
  for (int round = 0; round < 60; ++round) {
    GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
    vocabulary.add_space_prefix = false;
    vocabulary.tokens.resize(kA);
    vocabulary.scores.resize(kA);
    vocabulary.types.resize(kA);
    const auto add = [&](const std::string& text) {
      if (std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), text) != vocabulary.tokens.end()) return;
      vocabulary.tokens.push_back(text);
      vocabulary.scores.push_back(-static_cast<float>(random() % 4));
      vocabulary.types.push_back(1);
    };
    for (const char* letter : {"a", "b", "c"}) add(letter);
    for (int i = 0; i < 25; ++i) {
      const size_t plain = vocabulary.tokens.size() - kA;
      add(vocabulary.tokens[kA + random() % plain] + vocabulary.tokens[kA + random() % plain]);
    }
    const auto tokenizer = LoadGguf(vocabulary);
    ASSERT_NE(tokenizer, nullptr);
    for (int i = 0; i < 20; ++i) {
      std::string text(random() % 40, 'a');
      std::vector<std::string> symbols;
      for (char& c : text) {
        c = static_cast<char>('a' + random() % 3);
        symbols.emplace_back(1, c);
      }
      ASSERT_EQ(Encode(*tokenizer, text), EncodeNaively(vocabulary, symbols)) << text;
    }
  }
}

}  // namespace
}  // namespace scion
