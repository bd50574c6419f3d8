#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/text.h"

namespace scion::client {
namespace {

using testing::ElementsAre;
using testing::Optional;

TEST(Utf8, AcceptsEveryLengthAndNamesTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("a\u00e9\u4e2d\U0001F600\x7f"), std::nullopt);
  EXPECT_THAT(FindInvalidUtf8("ab\xff"), Optional(2u));
  EXPECT_THAT(FindInvalidUtf8("\xe4\xb8"), Optional(0u));          // cut off
  EXPECT_THAT(FindInvalidUtf8("a\xc0\x80"), Optional(1u));         // overlong
  EXPECT_THAT(FindInvalidUtf8("\xe0\x80\x80"), Optional(0u));      // overlong
  EXPECT_THAT(FindInvalidUtf8("\xed\xa0\x80"), Optional(0u));      // surrogate
  EXPECT_THAT(FindInvalidUtf8("\xf4\x90\x80\x80"), Optional(0u));  // past U+10FFFF
  EXPECT_THAT(FindInvalidUtf8("\x80"), Optional(0u));
}

TEST(Escape, KeepsTextAndMarksTheRest) {
  EXPECT_EQ(Escape("a b\u4e2d"), "a b\u4e2d");
  EXPECT_EQ(Escape("\n\t\r\\\x1b\xff"), "\\n\\t\\r\\\\\\x1b\\xff");
}

TEST(TokenIds, AreNumbersFromZeroAndNothingElse) {
  EXPECT_THAT(*ParseTokenIds("1,17 4\n0"), ElementsAre(1, 17, 4, 0));
  for (const char* bad : {"", "1,-2", "x", "1.5", "99999999999", " , "}) {
    EXPECT_EQ(ParseTokenIds(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ReadTextFile, NamesWhatItCannotRead) {
  for (const char* path : {"/no/such/file", "/"}) {
    const absl::Status status = ReadTextFile(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path));
  }
}

}  // namespace
}  // namespace scion::client
