// A damaged or strange vocabulary of a GGUF file is refused with a message that names the place; an undamaged one
// loads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kUnimplemented = StatusCode::kUnimplemented;
constexpr StatusCode kExhausted = StatusCode::kResourceExhausted;

struct Damage {
  const char* name;
  std::function<void(GgufVocabulary&)> apply;
  StatusCode code;
  const char* message;  // part of it
};

using V = GgufVocabulary;

void Clear(V& v) {
  std::string model = std::move(v.model);
  v = V();
  v.model = std::move(model);
}

// Refused in either kind.
const Damage kAnyKind[] = {
    {"Empty", [](V& v) { Clear(v); }, kInvalid, "tokens: empty"},
    {"ModelEmpty", [](V& v) { v.model = std::string(""); }, kUnimplemented, "model: ''"},
    {"ModelUnknown", [](V& v) { v.model = std::string("t5"); }, kUnimplemented, "model: 't5'"},
    {"TypesShort", [](V& v) { v.types.pop_back(); }, kInvalid, "token_type has"},
    {"TypesLong", [](V& v) { v.types.push_back(1); }, kInvalid, "token_type has"},
    {"TypeZero", [](V& v) { v.types[5] = 0; }, kInvalid, "token_type of token 5 is 0"},
    {"TypeSeven", [](V& v) { v.types[5] = 7; }, kInvalid, "token_type of token 5 is 7"},
    {"TypeNegative", [](V& v) { v.types[5] = INT32_MIN; }, kInvalid, "token_type of token 5"},
    {"ScoresOfOtherLength", [](V& v) { v.scores.assign(3, 0.0F); }, kInvalid, "scores has 3 entries"},
    {"BosNegative", [](V& v) { v.bos_token_id = -1; }, kInvalid, "bos_token_id is -1"},
    {"BosBeyond", [](V& v) { v.bos_token_id = static_cast<int32_t>(v.tokens.size()); }, kInvalid, "bos_token_id is 2"},
    {"EosBeyond", [](V& v) { v.eos_token_id = INT32_MAX; }, kInvalid, "eos_token_id is 2147483647"},
    {"UnknownBeyond", [](V& v) { v.unknown_token_id = INT32_MIN; }, kInvalid, "unknown_token_id is -2147483648"},
    {"BosWantedButNotNamed",
     [](V& v) {
       v.add_bos = true;
       v.bos_token_id.reset();
     },
     kInvalid, "add_bos_token"},
    {"EosWantedButNotNamed",
     [](V& v) {
       v.add_eos = true;
       v.eos_token_id.reset();
     },
     kInvalid, "add_eos_token"},
    {"TokenLong", [](V& v) { v.tokens[259].assign(2049, 'a'); }, kInvalid, "token 259 has 2049 bytes"},
    {"TokenAbsurdlyLong", [](V& v) { v.tokens[259].assign(100'000'000, 'a'); }, kInvalid,
     "token 259 has 100000000 bytes"},
    {"ControlTokenLong",
     [](V& v) {
       v.tokens[258].assign(257, 'x');
       v.types[258] = 3;
     },
     kInvalid, "token 258 is a control or user-defined token of 257 bytes"},
    {"ControlTokenEmpty",
     [](V& v) {
       v.tokens[258] = std::string("");
       v.types[258] = 3;
     },
     kInvalid, "token 258 is a control or user-defined token of 0 bytes"},
    {"TokenTwice", [](V& v) { v.tokens[259] = v.tokens[100]; }, kInvalid, "tokens 100 and 259 are both"},
    {"ManyTokens",
     [](V& v) {
       v.tokens.resize((size_t{4} << 20) + 1);
       v.types.clear();
       v.scores.clear();
     },
     kExhausted, "more than 4194304 tokens"},
    {"ManyMerges", [](V& v) { v.merges.resize((size_t{4} << 20) + 1); }, kExhausted, "more than 4194304 merges"},
    {"ManyControlTokens",
     [](V& v) {
       while (v.tokens.size() < 70'000) {
         v.tokens.push_back(absl::StrCat("<", v.tokens.size(), ">"));
         v.types.push_back(3);
         v.scores.push_back(0);
       }
       if (v.model == "gpt2") v.scores.clear();
     },
     kExhausted, "more than 65536"},
    {"TemplateLong", [](V& v) { v.chat_template = std::string((4 << 20) + 1, ' '); }, kExhausted, "chat_template"},
};

const Damage kByteLevel[] = {
    {"PreUnknown", [](V& v) { v.pre = std::string("bloom"); }, kUnimplemented, "pre: the pre-tokenizer 'bloom'"},
    {"PreLong", [](V& v) { v.pre.assign(1'000'000, 'x'); }, kUnimplemented, "pre: the pre-tokenizer 'xxx"},
    {"MergeOfUnknown", [](V& v) { v.merges.emplace_back("a \u4e2d"); }, kInvalid, "merge 2"},
    {"MergeIntoUnknown", [](V& v) { v.merges.emplace_back("b c"); }, kInvalid, "merge 2: 'bc'"},
    {"MergeOfOne", [](V& v) { v.merges[0] = std::string("ab"); }, kInvalid, "merge 0: 'ab' is not two tokens"},
    {"MergeOfThree", [](V& v) { v.merges[1] = std::string("a b c"); }, kInvalid, "merge 1: 'a b c' is not two tokens"},
    {"MergeEmpty", [](V& v) { v.merges[0] = std::string(""); }, kInvalid, "merge 0"},
    {"MergeOfUnused", [](V& v) { v.types['b'] = 5; }, kInvalid, "merge 0: 'b'"},
    {"NoBytes",
     [](V& v) {
       Clear(v);
       v.tokens = {"abc"};
     },
     kInvalid, "no token for byte 10"},
    {"LetterMissing", [](V& v) { v.tokens['q'] = std::string("\u4e2d"); }, kInvalid, "no token for byte 113"},
    {"SpaceMissing", [](V& v) { v.types[' '] = 5; }, kInvalid, "no token for byte 32"},
    {"ByteToken", [](V& v) { v.types[0xFF] = 6; }, kUnimplemented, "byte token"},
    {"PrefixSpace", [](V& v) { v.add_space_prefix = true; }, kUnimplemented, "add_space_prefix"},
};

const Damage kSentencePiece[] = {
    {"NoScores", [](V& v) { v.scores.clear(); }, kInvalid, "scores"},
    {"NoSpace", [](V& v) { v.types[259] = 5; }, kInvalid, "no token for U+2581"},
    {"NanScore", [](V& v) { v.scores[260] = std::numeric_limits<float>::quiet_NaN(); }, kInvalid, "token 260"},
    {"InfiniteScore", [](V& v) { v.scores[0] = -std::numeric_limits<float>::infinity(); }, kInvalid, "token 0"},
    {"NoByteTokensNorUnknown",
     [](V& v) {
       for (int32_t& type : v.types) type = type == 6 ? 5 : type;
       v.unknown_token_id.reset();
     },
     kInvalid, "neither byte tokens nor an unknown_token_id"},
    {"OneByteMissing", [](V& v) { v.types[3 + 0x41] = 1; }, kInvalid, "none for byte 65"},
    {"ByteTokenOfOtherText", [](V& v) { v.tokens[3] = std::string("<0xG0>"); }, kInvalid, "'<0xG0>'"},
    {"ByteTokenInSmallLetters", [](V& v) { v.tokens[3 + 0xFF] = std::string("<0xff>"); }, kInvalid, "'<0xff>'"},
    {"ByteTokenTwice", [](V& v) { v.tokens[4] = std::string("<0x00>"); }, kInvalid, "tokens 3 and 4"},
    {"TokenNotUtf8", [](V& v) { v.tokens[260] = std::string("a\xFF"); }, kInvalid, "token 260"},
    {"UserDefinedNotUtf8", [](V& v) { v.tokens[273] = std::string("\xC3"); }, kInvalid, "token 273"},
};

void ExpectRefused(GgufVocabulary vocabulary, const Damage& damage) {
  SCOPED_TRACE(damage.name);
  damage.apply(vocabulary);
  const auto tokenizer = Tokenizer::FromGguf(std::move(vocabulary));
  EXPECT_EQ(tokenizer.status().code(), damage.code) << tokenizer.status().ToString();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(damage.message));
  EXPECT_THAT(std::string(tokenizer.status().message()), testing::StartsWith("tokenizer.ggml: "));
  EXPECT_LT(tokenizer.status().message().size(), 1000u);
}

TEST(DamagedGgufTest, TheUndamagedOnesLoad) {
  for (V vocabulary : {text_test::SmallByteLevelGguf(), text_test::SmallSentencePieceGguf()}) {
    EXPECT_TRUE(Tokenizer::FromGguf(vocabulary).ok());
    // Values at the edge of what is refused.
    vocabulary.tokens.back().assign(2048, 'a');
    vocabulary.types.back() = 1;
    vocabulary.eos_token_id = static_cast<int32_t>(vocabulary.tokens.size()) - 1;
    vocabulary.bos_token_id = 0;
    vocabulary.add_bos = true;
    EXPECT_TRUE(Tokenizer::FromGguf(vocabulary).ok()) << Tokenizer::FromGguf(vocabulary).status().ToString();
    vocabulary.types.clear();
    vocabulary.bos_token_id.reset();
    vocabulary.eos_token_id.reset();
    vocabulary.add_bos.reset();
    EXPECT_TRUE(Tokenizer::FromGguf(vocabulary).ok()) << Tokenizer::FromGguf(vocabulary).status().ToString();
  }
}

TEST(DamagedGgufTest, EachDamageIsRefusedByName) {
  for (const Damage& damage : kAnyKind) {
    ExpectRefused(text_test::SmallByteLevelGguf(), damage);
    ExpectRefused(text_test::SmallSentencePieceGguf(), damage);
  }
  for (const Damage& damage : kByteLevel) ExpectRefused(text_test::SmallByteLevelGguf(), damage);
  for (const Damage& damage : kSentencePiece) ExpectRefused(text_test::SmallSentencePieceGguf(), damage);
}

}  // namespace
}  // namespace scion
