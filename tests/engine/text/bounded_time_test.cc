// What a stranger sends, and what a strange tokenizer.json asks for, ends in time.
#include <gtest/gtest.h>

#include <ctime>
#include <functional>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Encode;
using text_test::Json;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr double kSlowBuild = 20;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr double kSlowBuild = 20;
#else
constexpr double kSlowBuild = 1;
#endif
#else
constexpr double kSlowBuild = 1;
#endif

constexpr size_t kMegabyte = 1'000'000;

double CpuSeconds(const std::function<void()>& work) {
  const std::clock_t begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

std::string Repeat(std::string_view text, size_t size) {
  std::string repeated;
  while (repeated.size() < size) repeated.append(text);
  return repeated;
}

class BoundedTimeTest : public testing::TestWithParam<std::string_view> {};

TEST_P(BoundedTimeTest, AMegabyteOfOneKindTakesUnderTwoSeconds) {
  const auto tokenizer = text_test::LoadTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::string inputs[] = {
      Repeat("a", kMegabyte),           Repeat("abcdefghij", kMegabyte),
      Repeat(" ", kMegabyte),           Repeat(" ", kMegabyte) + "x",
      Repeat("\n", kMegabyte),          Repeat("1", kMegabyte),
      Repeat("!", kMegabyte),           Repeat("\u4e2d", kMegabyte),
      Repeat("\xFF", kMegabyte),        Repeat("\u0316\u0301", kMegabyte),
      Repeat("<|endoftext", kMegabyte), Repeat("a ", kMegabyte),
  };
  for (const std::string& input : inputs) {
    std::vector<int32_t> ids;
    EXPECT_LT(CpuSeconds([&] { ids = Encode(*tokenizer, input); }), 2.0 * kSlowBuild) << input.substr(0, 20);
    EXPECT_GE(tokenizer->Decode(ids, /*skip_special=*/false).size(), kMegabyte);
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, BoundedTimeTest, testing::ValuesIn(text_test::kStyles),
                         [](const auto& info) { return std::string(info.param); });

class GgufBoundedTimeTest : public testing::TestWithParam<std::string_view> {};

TEST_P(GgufBoundedTimeTest, AMegabyteOfOneKindTakesUnderASecond) {
  const auto tokenizer = text_test::LoadGguf(text_test::ReadGgufVocabulary(GetParam()));
  ASSERT_NE(tokenizer, nullptr);
  for (const std::string_view piece :
       {"a", "e", "abcdefghij", " ", "-", "1", "\u4e2d", "\xFF", "\xE4\xB8", "a ", "int "}) {
    const std::string input = Repeat(piece, kMegabyte);
    std::vector<int32_t> ids;
    EXPECT_LT(CpuSeconds([&] { ids = Encode(*tokenizer, input); }), 1.0 * kSlowBuild) << piece;
    // A run that has no token at all is one unknown token, or nothing.
    EXPECT_LE(ids.size(), input.size() + 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GgufBoundedTimeTest, testing::Values("smollm", "qwen2", "spm", "spm_unknown"),
                         [](const auto& info) { return std::string(info.param); });

TEST(GgufBoundedTimeTest, AHostileVocabularyTakesSecondsAtMost) {
  // Every run of letters is a token, and the longer one is joined first: the leftmost symbol grows letter by letter.
  GgufVocabulary vocabulary = text_test::SmallSentencePieceGguf();
  for (size_t length = 3; length <= 2048; ++length) {
    vocabulary.tokens.emplace_back(length, 'a');
    vocabulary.scores.push_back(static_cast<float>(length));
    vocabulary.types.push_back(1);
  }
  const auto tokenizer = text_test::LoadGguf(std::move(vocabulary));
  ASSERT_NE(tokenizer, nullptr);
  std::vector<int32_t> ids;
  EXPECT_LT(CpuSeconds([&] { ids = Encode(*tokenizer, Repeat("a", kMegabyte)); }), 5.0 * kSlowBuild);
  EXPECT_LT(ids.size(), 1000u);
}

std::unique_ptr<Tokenizer> WithRegex(const std::string& regex) {
  Json json = text_test::SmallTokenizer();
  json["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  auto tokenizer = Tokenizer::Parse(json.dump(), "");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(HostileRegexTest, EndsWithTheSameTokensEveryTime) {
  const std::string text = Repeat("a", kMegabyte);
  for (const char* regex : {"(a+)+!", "(?:a|a)+!", "a++!|a", "[a-z]*[a-z]*[a-z]*!", "(?=(a+)+!)a",
                            "(?:a{1,200}){1,200}!|a", "(?:(?:a?){50}){50}!", "(?<=a)a++!"}) {
    const auto tokenizer = WithRegex(regex);
    ASSERT_NE(tokenizer, nullptr);
    std::vector<int32_t> first;
    EXPECT_LT(CpuSeconds([&] { first = Encode(*tokenizer, text); }), 10.0 * kSlowBuild) << regex;
    EXPECT_EQ(tokenizer->Decode(first, false), text) << regex;
    const std::string shorter = text.substr(0, 20000);
    EXPECT_EQ(Encode(*tokenizer, shorter), Encode(*tokenizer, shorter)) << regex;
  }
}

TEST(HostileRegexTest, TheRestIsOnePreTokenWhenTheStepsHaveRunOut) {
  // "ab" is a merge. The regex keeps a and b apart until a run of a's without end eats up the steps.
  const auto tokenizer = WithRegex("b|(?:a|a)+!|a");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(Encode(*tokenizer, "abab"), (std::vector<int32_t>{'a', 'b', 'a', 'b'}));
  const std::vector<int32_t> ids = Encode(*tokenizer, "ab" + std::string(100, 'a') + "b");
  EXPECT_EQ(ids.front(), 'a');
  EXPECT_EQ(ids.back(), 256);
}

}  // namespace
}  // namespace scion
