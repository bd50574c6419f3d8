#include "engine/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace scion {
namespace {

using ::testing::HasSubstr;

std::string Nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
}

TEST(JsonTest, GivesWhatTheTextSays) {
  const auto json = ParseJson(R"({"a": [1, -2, 2.5, true, null, "x"], "b": {"c": {}}})", "t");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->dump(), R"({"a":[1,-2,2.5,true,null,"x"],"b":{"c":{}}})");
}

TEST(JsonTest, RefusesWhatIsNotJson) {
  for (std::string_view text : {"", " ", "{", "}", "{]", "[1,]", "{\"a\":}", "{\"a\" 1}", "nul", "1 2", "\"\xff\"",
                                "\"\\ud800\"", "[1e400]", "{'a':1}", "[01]", "\"a\nb\"", "// c\n1", "[NaN]"}) {
    const auto json = ParseJson(text, "some.json");
    EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(json.status().message()), HasSubstr("some.json: byte ")) << text;
  }
}

TEST(JsonTest, ANulIsNoEndOfText) {
  for (std::string_view text : {std::string_view("{}\0", 3), std::string_view("{}\0garbage", 10),
                                std::string_view("{\0}", 3), std::string_view("[\"a\0\"]", 6)}) {
    EXPECT_EQ(ParseJson(text, "t").status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(JsonTest, AKeyThatComesTwiceIsAnErrorAtAnyDepth) {
  for (std::string_view text : {R"({"k":1,"k":1})", R"({"k":1,"x":2,"k":3})", R"({"x":{"k":1,"k":2}})",
                                R"([[{"k":{},"k":[]}]])", R"({"k":1,"\u006b":2})"}) {
    const auto json = ParseJson(text, "t");
    EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(json.status().message()), HasSubstr("'k' twice")) << text;
  }
  EXPECT_TRUE(ParseJson(R"({"k":{"k":1},"x":{"k":2}})", "t").ok());
}

TEST(JsonTest, NestingIsBounded) {
  EXPECT_TRUE(ParseJson(Nested(64), "t").ok());
  EXPECT_THAT(std::string(ParseJson(Nested(65), "t").status().message()), HasSubstr("deeper than 64"));
  // Neither the parser nor the destructor may use the stack for it.
  EXPECT_FALSE(ParseJson(std::string(1 << 20, '['), "t").ok());
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_FALSE(ParseJson(objects, "t").ok());
}

TEST(JsonTest, SizeAndNumberOfValuesAreBounded) {
  const JsonLimits limits = {.max_bytes = 10, .max_values = 3};
  EXPECT_TRUE(ParseJson("[1,2]     ", "t", limits).ok());
  EXPECT_EQ(ParseJson("[1,2]      ", "t", limits).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ParseJson("[1,2,3]", "t", limits).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ParseJson("[[],{},0]", "t", limits).status().code(), absl::StatusCode::kResourceExhausted);
}

class GetterTest : public ::testing::Test {
 protected:
  template <typename T>
  static void ExpectError(const absl::StatusOr<T>& result, std::string_view a, std::string_view b) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(std::string(a)));
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(std::string(b)));
  }
  const Json json_ = *ParseJson(
      R"({"i":7,"big":18446744073709551615,"neg":-3,"f":7.0,"s":"text","b":true,"n":null,"a":[1],"o":{}})", "t");
};

TEST_F(GetterTest, GiveTheValue) {
  EXPECT_EQ(*GetInt(json_, "i", 7, 7), 7);
  EXPECT_EQ(*GetInt(json_, "neg", -3, 0), -3);
  EXPECT_EQ(*GetNumber(json_, "i"), 7.0);
  EXPECT_EQ(*GetBool(json_, "b"), true);
  EXPECT_EQ(*GetString(json_, "s"), "text");
  EXPECT_EQ((*GetArray(json_, "a"))->size(), 1u);
  EXPECT_TRUE((*GetObject(json_, "o"))->empty());
  EXPECT_EQ(*GetOptionalInt(json_, "i", 0, 9), 7);
  EXPECT_EQ(*GetStringOr(json_, "s", "else"), "text");
}

TEST_F(GetterTest, NameTheKeyAndWhatIsWrong) {
  ExpectError(GetInt(json_, "absent", 0, 1), "'absent'", "missing");
  ExpectError(GetInt(json_, "n", 0, 1), "'n'", "missing");
  ExpectError(GetInt(json_, "f", 0, 9), "'f'", "must be an integer, not number");
  ExpectError(GetInt(json_, "i", 8, 9), "'i' is 7", "[8, 9]");
  ExpectError(GetInt(json_, "big", 0, INT64_MAX), "'big' is 18446744073709551615", "outside");
  ExpectError(GetNumber(json_, "s"), "'s'", "a number");
  ExpectError(GetBool(json_, "i"), "'i'", "true or false");
  ExpectError(GetString(json_, "b"), "'b'", "a string, not boolean");
  ExpectError(GetArray(json_, "o"), "'o'", "an array");
  ExpectError(GetObject(json_, "a"), "'a'", "an object");
  ExpectError(GetOptionalBool(json_, "s"), "'s'", "true or false");
  ExpectError(GetStringOr(json_, "i", "else"), "'i'", "a string");
}

TEST_F(GetterTest, OptionalOnesTakeAbsentAndNullForNothing) {
  EXPECT_EQ(*GetOptionalInt(json_, "absent", 0, 1), std::nullopt);
  EXPECT_EQ(*GetOptionalNumber(json_, "n"), std::nullopt);
  EXPECT_EQ(*GetStringOr(json_, "n", "else"), "else");
}

}  // namespace
}  // namespace scion
