// Ids and texts equal those of Hugging Face's `tokenizers`; the golden files come from make_tokenizer_golden.py.
#include <gtest/gtest.h>

#include <thread>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Encode;
using text_test::Json;

class TokenizerGoldenTest : public testing::TestWithParam<std::string_view> {
 protected:
  TokenizerGoldenTest()
      : tokenizer_(text_test::LoadTokenizer(GetParam())),
        strings_(text_test::ReadGolden("strings.json").get<std::vector<std::string>>()),
        expected_(text_test::ReadGolden(std::string(GetParam()) + ".expected.json")) {}

  // expected_[key] holds only what differs from `otherwise`.
  template <typename T>
  T Expected(const char* key, size_t index, const T& otherwise) const {
    const auto it = expected_[key].find(std::to_string(index));
    return it == expected_[key].end() ? otherwise : it->template get<T>();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::string> strings_;
  Json expected_;
};

TEST_P(TokenizerGoldenTest, IdsAndTextsEqualTheReference) {
  ASSERT_NE(tokenizer_, nullptr);
  ASSERT_GE(strings_.size(), 300u);
  ASSERT_EQ(expected_["raw"].size(), strings_.size());
  for (size_t i = 0; i < strings_.size(); ++i) {
    SCOPED_TRACE(testing::Message() << i << ": " << Json(strings_[i]).dump(-1, ' ', true));
    const auto raw = expected_["raw"][i].get<std::vector<int32_t>>();
    EXPECT_EQ(Encode(*tokenizer_, strings_[i]), raw);
    EXPECT_EQ(Encode(*tokenizer_, strings_[i], {.parse_special = false, .add_special = false}),
              Expected("content", i, raw));
    const std::string decoded = Expected("decoded", i, strings_[i]);
    EXPECT_EQ(tokenizer_->Decode(raw, /*skip_special=*/false), decoded);
    EXPECT_EQ(tokenizer_->Decode(raw, /*skip_special=*/true), Expected("decoded_plain", i, decoded));
  }
}

TEST_P(TokenizerGoldenTest, ThePostProcessorsTokensAreAdded) {
  ASSERT_NE(tokenizer_, nullptr);
  const bool has_template = GetParam() == "llama3" || GetParam() == "prefix_space";
  EXPECT_EQ(expected_["added"].size() > 15, has_template);
  for (const auto& [index, ids] : expected_["added"].items()) {
    EXPECT_EQ(Encode(*tokenizer_, strings_[std::stoul(index)], {.parse_special = true, .add_special = true}),
              ids.get<std::vector<int32_t>>());
  }
}

TEST_P(TokenizerGoldenTest, ManyThreadsShareOneTokenizer) {
  ASSERT_NE(tokenizer_, nullptr);
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([this, &count] {
      for (size_t i = 0; i < strings_.size(); ++i) {
        count += Encode(*tokenizer_, strings_[i]) != expected_["raw"][i].get<std::vector<int32_t>>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGoldenTest, testing::ValuesIn(text_test::kStyles),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace scion
