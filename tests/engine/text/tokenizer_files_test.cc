// A GGUF vocabulary written as tokenizer.json and tokenizer_config.json is the same tokenizer.
#include "engine/text/tokenizer_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using text_test::Json;

std::unique_ptr<Tokenizer> Rewritten(const GgufVocabulary& vocabulary) {
  const auto files = TokenizerFilesOfGguf(vocabulary);
  EXPECT_TRUE(files.ok()) << files.status();
  if (!files.ok()) return nullptr;
  auto tokenizer = Tokenizer::Parse(files->tokenizer_json, files->tokenizer_config_json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

class TokenizerFilesTest : public testing::TestWithParam<std::string_view> {};

TEST_P(TokenizerFilesTest, IdsAreThoseOfTheReference) {
  const auto tokenizer = Rewritten(text_test::ReadGgufVocabulary(GetParam()));
  ASSERT_NE(tokenizer, nullptr);
  const auto golden = std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/gguf";
  std::vector<std::string> strings = text_test::ReadGolden("strings.json");
  for (const Json& string : Json::parse(text_test::ReadFile(golden / "random.json"))) strings.push_back(string);
  const Json expected = Json::parse(text_test::ReadFile(golden / (std::string(GetParam()) + ".expected.json")));
  ASSERT_EQ(expected["ids"].size(), strings.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    const auto ids = expected["ids"][i].get<std::vector<int32_t>>();
    ASSERT_EQ(text_test::Encode(*tokenizer, strings[i], {.parse_special = false, .add_special = false}), ids) << i;
  }
}

TEST_P(TokenizerFilesTest, SpecialTokensAndTemplateAreThoseOfTheVocabulary) {
  GgufVocabulary vocabulary = text_test::ReadGgufVocabulary(GetParam());
  vocabulary.chat_template = "{{ \"\u00e9\" }}\n";
  const auto tokenizer = Rewritten(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->bos_token_id(), vocabulary.bos_token_id);
  EXPECT_EQ(tokenizer->eos_token_id(), vocabulary.eos_token_id);
  EXPECT_EQ(tokenizer->chat_template(), vocabulary.chat_template);
  ASSERT_EQ(tokenizer->size(), static_cast<int32_t>(vocabulary.tokens.size()));
  int special = 0;
  for (int32_t id = 0; id < tokenizer->size(); ++id) {
    const bool is_control = vocabulary.types[static_cast<size_t>(id)] == static_cast<int32_t>(GgufTokenType::kControl);
    ASSERT_EQ(tokenizer->IsSpecial(id), is_control) << id;
    if (!is_control) continue;
    ++special;
    const std::string& text = vocabulary.tokens[static_cast<size_t>(id)];
    EXPECT_EQ(text_test::Encode(*tokenizer, "a" + text + "b"),
              text_test::Encode(*text_test::LoadGguf(vocabulary), "a" + text + "b"));
    EXPECT_EQ(tokenizer->TokenBytes(id), text);
  }
  EXPECT_GT(special, 0);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenizerFilesTest, testing::Values("smollm", "llama-bpe", "qwen2"),
                         [](const auto& info) { return info.param == "llama-bpe" ? "llama_bpe" : info.param.data(); });

TEST(TokenizerFilesTest, BosAndEosGoAroundATextWhereTheVocabularySaysSo) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.bos_token_id = 258;
  vocabulary.eos_token_id = 259;
  const Tokenizer::EncodeOptions add{.parse_special = true, .add_special = true};
  vocabulary.add_bos = true;
  vocabulary.add_eos = true;
  EXPECT_THAT(text_test::Encode(*Rewritten(vocabulary), "abc", add), testing::ElementsAre(258, 257, 259));
  vocabulary.add_bos = false;
  vocabulary.add_eos = false;
  EXPECT_THAT(text_test::Encode(*Rewritten(vocabulary), "abc", add), testing::ElementsAre(257));
}

TEST(TokenizerFilesTest, WhatHasNoSuchFilesIsRefusedByName) {
  EXPECT_THAT(
      TokenizerFilesOfGguf(text_test::SmallSentencePieceGguf()).status().ToString(),
      testing::AllOf(testing::HasSubstr("UNIMPLEMENTED"), testing::HasSubstr("tokenizer.ggml: model: 'llama'")));
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.tokens.push_back("\xff\xfe");
  vocabulary.types.push_back(1);
  EXPECT_THAT(TokenizerFilesOfGguf(vocabulary).status().ToString(), testing::HasSubstr("token 260"));
}

}  // namespace
}  // namespace scion
