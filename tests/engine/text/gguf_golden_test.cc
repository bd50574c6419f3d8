// Ids and texts equal those of `tokenizers` and `sentencepiece`; the golden files come from make_gguf_golden.py.
#include <gtest/gtest.h>

#include "engine/text/gguf_pre_tokenizer.h"
#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Json;

Json ReadGgufGolden(const std::string& name) {
  return Json::parse(text_test::ReadFile(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/gguf" / name));
}

std::vector<std::string> Strings() {
  std::vector<std::string> strings = text_test::ReadGolden("strings.json");
  for (const Json& string : ReadGgufGolden("random.json")) strings.push_back(string);
  return strings;
}

class GgufGoldenTest : public testing::TestWithParam<std::string_view> {};

TEST_P(GgufGoldenTest, IdsAndTextsEqualTheReference) {
  const auto tokenizer = text_test::LoadGguf(text_test::ReadGgufVocabulary(GetParam()));
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<std::string> strings = Strings();
  ASSERT_GE(strings.size(), 2300u);
  const Json expected = ReadGgufGolden(std::string(GetParam()) + ".expected.json");
  ASSERT_EQ(expected["ids"].size(), strings.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    SCOPED_TRACE(testing::Message() << i << ": " << Json(strings[i]).dump(-1, ' ', true));
    const auto ids = expected["ids"][i].get<std::vector<int32_t>>();
    ASSERT_EQ(text_test::Encode(*tokenizer, strings[i], {.parse_special = false, .add_special = false}), ids);
    // The reference shows an unknown token in its own way.
    if (GetParam() == "spm_unknown") continue;
    ASSERT_EQ(tokenizer->Decode(ids, /*skip_special=*/false), expected["decoded"].value(std::to_string(i), strings[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GgufGoldenTest, testing::ValuesIn(text_test::kGgufVocabularies),
                         [](const auto& info) {
                           std::string name(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(GgufPreTokenizerTest, CutsAsTheModelsOwnTokenizerDoes) {
  const auto strings = text_test::ReadGolden("strings.json").get<std::vector<std::string>>();
  const Json golden = ReadGgufGolden("pieces.json");
  ASSERT_GE(golden.size(), 9u);
  for (const auto& [name, expected] : golden.items()) {
    const auto found = FindGgufPreTokenizer(name);
    ASSERT_TRUE(found.ok()) << found.status().ToString();
    const auto pre_tokenizer = PreTokenizer::Create(found->steps);
    ASSERT_TRUE(pre_tokenizer.ok()) << name << pre_tokenizer.status().ToString();
    ASSERT_EQ(expected.size(), strings.size());
    for (size_t i = 0; i < strings.size(); ++i) {
      Regex::Scratch scratch(pre_tokenizer->MaxRegexSteps(strings[i].size()));
      PreTokenizer::Pieces pieces;
      pieces.text = strings[i];
      pre_tokenizer->Run(scratch, pieces);
      EXPECT_EQ(pieces.ends, expected[i].get<std::vector<size_t>>())
          << name << " " << i << ": " << Json(strings[i]).dump(-1, ' ', true);
    }
  }
}

}  // namespace
}  // namespace scion
