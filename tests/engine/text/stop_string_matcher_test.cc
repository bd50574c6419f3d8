#include <gtest/gtest.h>

#include <random>

#include "engine/text/tokenizer.h"

namespace scion {
namespace {

struct Result {
  std::string text;
  bool stopped = false;
  bool operator==(const Result&) const = default;
};

// By definition: of all places where a stop string ends, the first; there the longest.
Result Naive(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (!stop.empty() && text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

// `cuts`: bit i set means a new push begins after byte i.
Result Streamed(const std::vector<std::string>& stops, const std::string& text, uint32_t cuts) {
  StopStringMatcher matcher(stops);
  Result result;
  std::string push;
  for (size_t i = 0; i < text.size(); ++i) {
    push.push_back(text[i]);
    if ((cuts >> i & 1) == 0 && i + 1 < text.size()) continue;
    if (matcher.Push(push, result.text)) {
      result.stopped = true;
      return result;
    }
    push.clear();
  }
  matcher.Finish(result.text);
  return result;
}

TEST(StopStringMatcherTest, FindsAStopHoweverTheTextIsCut) {
  struct Case {
    std::vector<std::string> stops;
    std::string text;
    Result expected;
  };
  const Case cases[] = {
      {{"END"}, "say END now", {"say ", true}},  {{"END"}, "say EENDx", {"say E", true}},
      {{"END"}, "say EN", {"say EN", false}},    {{"\n\n"}, "a\nb\n\nc", {"a\nb", true}},
      {{"aab"}, "aaaab", {"aa", true}},          {{"abab"}, "abaabab", {"aba", true}},
      {{"b", "abc"}, "abc", {"a", true}},         // 'b' is complete first
      {{"c", "bc", "abc"}, "xabc", {"x", true}},  // all end at one byte: the longest
      {{"abcd", "bx"}, "abcbx", {"abc", true}},  {{"\u4e16"}, "\u4f60\u4e16", {"\u4f60", true}},
      {{""}, "text", {"text", false}},           {{}, "text", {"text", false}},
  };
  for (const Case& test : cases) {
    for (uint32_t cuts = 0; cuts < 1u << (test.text.size() - 1); ++cuts) {
      ASSERT_EQ(Streamed(test.stops, test.text, cuts).text, test.expected.text) << test.text << " cut by " << cuts;
      ASSERT_EQ(Streamed(test.stops, test.text, cuts).stopped, test.expected.stopped) << test.text;
    }
  }
}

TEST(StopStringMatcherTest, AgreesWithTheDefinition) {
  std::mt19937 random(5);
  const auto word = [&](size_t size) {
    std::string text(size, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  int stopped = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) stop = word(1 + random() % 6);
    const std::string text = word(1 + random() % 14);
    const Result expected = Naive(stops, text);
    stopped += expected.stopped;
    ASSERT_EQ(Streamed(stops, text, random()), expected) << text;
  }
  EXPECT_GT(stopped, 5000);
  EXPECT_LT(stopped, 19000);
}

TEST(StopStringMatcherTest, HoldsBackNoMoreThanMightBeAStop) {
  StopStringMatcher matcher({"###", "#end"});
  std::string out;
  EXPECT_FALSE(matcher.Push("text #", out));
  EXPECT_EQ(out, "text ");
  EXPECT_FALSE(matcher.Push("en", out));
  EXPECT_EQ(out, "text ");
  EXPECT_FALSE(matcher.Push("t", out));
  EXPECT_EQ(out, "text #ent");
  EXPECT_FALSE(matcher.Push("##", out));
  matcher.Finish(out);
  EXPECT_EQ(out, "text #ent##");
  EXPECT_TRUE(StopStringMatcher({""}).empty());
}

}  // namespace
}  // namespace scion
