// A tokenizer on its way from a Hugging Face directory into a GGUF file and back: the ids stay those of Hugging Face's
// `tokenizers`, and what GGUF or Hugging Face can't say is refused by name. The golden files: tests/golden/tokenizer
// and tests/golden/gguf, made by make_tokenizer_golden.py and make_gguf_golden.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"
#include "extract/export.h"
#include "extract/gguf_vocabulary_of.h"
#include "extract/tokenizer_json.h"
#include "tests/engine/text/text_test_util.h"
#include "tests/extract/extract_fixture.h"
#include "tests/support/tiny_gguf.h"

namespace scion::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Strings = std::vector<std::string>;

const fs::path kGolden = fs::path(SCION_SOURCE_DIR) / "tests/golden";
constexpr Tokenizer::EncodeOptions kContent = {.parse_special = false, .add_special = false};
constexpr Tokenizer::EncodeOptions kWhole = {.parse_special = true, .add_special = true};

class ExportTokenizerTest : public testing::Test {
 protected:
  fs::path model() const { return dir_.path() / "model"; }
  fs::path gguf() const { return dir_.path() / "out.gguf"; }
  fs::path hf() const { return dir_.path() / "hf"; }

  // A tiny Llama beside the tokenizer's files.
  void Write(std::string_view tokenizer_json, std::string_view config_json, int vocab_size) {
    WriteTinyModel(MakeTinyModel({.model_type = "llama", .vocab_size = vocab_size, .with_index = false}), model());
    WriteBytes(model() / "tokenizer.json", tokenizer_json);
    if (!config_json.empty()) WriteBytes(model() / "tokenizer_config.json", config_json);
  }

  static absl::StatusOr<ExportResult> Make(const fs::path& source, const fs::path& out, ExportFormat format) {
    return Export({.model = source, .out = out, .format = format});
  }

  static GgufVocabulary VocabularyIn(const fs::path& path) {
    const auto checkpoint = Checkpoint::Open(path);
    if (!checkpoint.ok() || (*checkpoint)->vocabulary() == nullptr) throw std::runtime_error(path.string());
    return *(*checkpoint)->vocabulary();
  }

  TempDir dir_;
};

struct Style {
  const char* name;  // of tests/golden/tokenizer
  const char* pre;   // llama.cpp's name for its pre-tokenizer
  int vocab_size;
};

class ExportStyleTest : public ExportTokenizerTest, public testing::WithParamInterface<Style> {};

TEST_P(ExportStyleTest, IdsStayThoseOfTheReference) {
  const std::string name = GetParam().name;
  const fs::path source = name == "demo" ? fs::path(SCION_SOURCE_DIR) / "deploy/demo" : kGolden / "tokenizer" / name;
  Json tokenizer_json = Json::parse(ReadBytes(source / "tokenizer.json"));
  if (name == "qwen2") {
    // Its file has a token that is found in text that must be normalised first: GGUF knows no such thing.
    Write(tokenizer_json.dump(), "", GetParam().vocab_size);
    const absl::Status refused = Make(model(), gguf(), ExportFormat::kGguf).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("'Vi\u1ec7t' is looked for in normalised text"));
    for (Json& token : tokenizer_json["added_tokens"]) token["normalized"] = false;
  }
  Write(tokenizer_json.dump(), name == "demo" ? ReadBytes(source / "tokenizer_config.json") : "",
        GetParam().vocab_size);
  const auto made = Make(model(), gguf(), ExportFormat::kGguf);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->pre_tokenizer, GetParam().pre);
  ASSERT_TRUE(Make(gguf(), hf(), ExportFormat::kHuggingFace).ok());

  const auto in_gguf = text_test::LoadGguf(VocabularyIn(gguf()));
  const auto back = Tokenizer::Load(hf());
  ASSERT_TRUE(back.ok()) << back.status();
  const Strings strings = text_test::ReadGolden("strings.json");
  const Json expected = text_test::ReadGolden(name + ".expected.json");
  ASSERT_EQ(expected["raw"].size(), strings.size());
  for (const Tokenizer* tokenizer : {in_gguf.get(), back->get()}) {
    for (size_t i = 0; i < strings.size(); ++i) {
      SCOPED_TRACE(testing::Message() << i << ": " << Json(strings[i]).dump(-1, ' ', true));
      const std::string key = std::to_string(i);
      const Json raw = expected["raw"][i];
      if (name == "qwen2" && strings[i].find("Vie\u0323\u0302t") != std::string::npos) continue;
      EXPECT_EQ(Json(text_test::Encode(*tokenizer, strings[i])), raw);
      EXPECT_EQ(Json(text_test::Encode(*tokenizer, strings[i], kContent)), expected["content"].value(key, raw));
      if (!expected["added"].contains(key)) continue;
      EXPECT_EQ(Json(text_test::Encode(*tokenizer, strings[i], kWhole)), expected["added"][key]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, ExportStyleTest,
                         testing::Values(Style{"demo", "qwen2", 8192}, Style{"gpt2", "gpt-2", 1000},
                                         Style{"llama3", "llama-bpe", 1000}, Style{"qwen2", "qwen2", 1000}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(ExportTokenizerTest, AVocabularyBecomesTheTokenizerOfTheReference) {
  Strings strings = text_test::ReadGolden("strings.json");
  for (const Json& string : Json::parse(ReadBytes(kGolden / "gguf/random.json"))) strings.push_back(string);
  for (const char* name : {"smollm", "llama-bpe", "qwen2"}) {
    const GgufVocabulary vocabulary = text_test::ReadGgufVocabulary(name);
    const auto json = TokenizerJson(vocabulary);
    ASSERT_TRUE(json.ok()) << json.status();
    const auto tokenizer = Tokenizer::Parse(*json, TokenizerConfigJson(vocabulary));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->bos_token_id(), vocabulary.bos_token_id);
    EXPECT_EQ((*tokenizer)->eos_token_id(), vocabulary.eos_token_id);
    const Json expected = Json::parse(ReadBytes(kGolden / "gguf" / (std::string(name) + ".expected.json")));
    ASSERT_EQ(expected["ids"].size(), strings.size());
    for (size_t i = 0; i < strings.size(); ++i) {
      ASSERT_EQ(Json(text_test::Encode(**tokenizer, strings[i], kContent)), expected["ids"][i])
          << name << " " << i << ": " << Json(strings[i]).dump(-1, ' ', true);
    }
  }
}

// The small tokenizer: 256 bytes, "ab", "abc", "<s>" 258, "</s>" 259; GPT-2's pattern.
Json Small() { return text_test::SmallTokenizer(); }

TEST_F(ExportTokenizerTest, WhatTheFileSaysOfTokens) {
  Json tokenizer = Small();
  tokenizer["added_tokens"].push_back({{"id", 261}, {"content", "<tool>"}, {"special", false}, {"normalized", false}});
  tokenizer["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", Json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {258}}, {"tokens", {"<s>"}}}}}}};
  Write(tokenizer.dump(), R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ x }}"})", 264);
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  const GgufVocabulary v = VocabularyIn(gguf());
  EXPECT_EQ(v.model, "gpt2");
  EXPECT_EQ(v.pre, "gpt-2");
  EXPECT_EQ(v.merges, (Strings{"a b", "ab c"}));
  ASSERT_EQ(v.tokens.size(), 264u);
  EXPECT_EQ(Strings(v.tokens.begin() + 256, v.tokens.end()),
            (Strings{"ab", "abc", "<s>", "</s>", "[PAD260]", "<tool>", "[PAD262]", "[PAD263]"}));
  // normal, normal, control, control, unused, user-defined, unused, unused
  EXPECT_EQ(std::vector<int32_t>(v.types.begin() + 256, v.types.end()), (std::vector<int32_t>{1, 1, 3, 3, 5, 4, 5, 5}));
  EXPECT_EQ(v.bos_token_id, 258);
  EXPECT_EQ(v.eos_token_id, 259);
  EXPECT_EQ(v.add_bos, true);
  EXPECT_EQ(v.add_eos, false);
  EXPECT_EQ(v.chat_template, "{{ x }}");
  EXPECT_EQ(v.nfc, std::nullopt);

  // And all of it comes back; so does what has a gap before it.
  ASSERT_TRUE(Make(gguf(), hf(), ExportFormat::kHuggingFace).ok());
  const auto back = Tokenizer::Load(hf());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ((*back)->chat_template(), "{{ x }}");
  EXPECT_EQ(text_test::Encode(**back, "abc<tool>ab", kWhole), (std::vector<int32_t>{258, 257, 261, 256}));
  const Json json = Json::parse(ReadBytes(hf() / "tokenizer.json"));
  EXPECT_EQ(json["model"]["vocab"]["<tool>"], 261);
}

TEST_F(ExportTokenizerTest, WithoutAPostProcessorNoBosIsAdded) {
  Write(Small().dump(), R"({"bos_token": "<s>", "eos_token": "</s>"})", 260);
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(gguf()).add_bos, false);
}

TEST_F(ExportTokenizerTest, ANormalizerThatTheNameDoesNotTellIsTold) {
  // Olmo has GPT-2's pattern and NFC; Qwen2's pattern always comes with NFC, unless the file says no.
  Json tokenizer = Small();
  tokenizer["normalizer"] = {{"type", "NFC"}};
  Write(tokenizer.dump(), "", 260);
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(gguf()).pre, "olmo");
  EXPECT_EQ(VocabularyIn(gguf()).nfc, std::nullopt);

  const fs::path demo = fs::path(SCION_SOURCE_DIR) / "deploy/demo";
  Write(ReadBytes(demo / "tokenizer.json"), ReadBytes(demo / "tokenizer_config.json"), 8192);
  const fs::path out = dir_.path() / "demo.gguf";
  ASSERT_TRUE(Make(model(), out, ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(out).nfc, false);
  // "e" and a combining acute accent stay two characters.
  const auto tokenizer_of_demo = Tokenizer::Load(demo);
  const std::string decomposed = "e\u0301";
  EXPECT_EQ(text_test::Encode(*text_test::LoadGguf(VocabularyIn(out)), decomposed),
            text_test::Encode(**tokenizer_of_demo, decomposed));
}

TEST_F(ExportTokenizerTest, OfAPairThatComesTwiceTheLastCounts) {
  Json tokenizer = Small();
  tokenizer["model"]["merges"] = {"a b", "ab c", "a b"};
  Write(tokenizer.dump(), "", 260);
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(gguf()).merges, (Strings{"ab c", "a b"}));
}

TEST_F(ExportTokenizerTest, TakingTokensWholeIsLeftOutWhereMergesReachThem) {
  Json tokenizer = Small();
  tokenizer["model"]["ignore_merges"] = true;
  Write(tokenizer.dump(), "", 260);
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  // A token that merging never makes.
  tokenizer["model"]["vocab"]["xyz"] = 260;
  Write(tokenizer.dump(), "", 261);
  const absl::Status status = Make(model(), dir_.path() / "second.gguf", ExportFormat::kGguf).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'ignore_merges' is true"));
}

TEST_F(ExportTokenizerTest, WhatGgufCannotSayIsRefusedByName) {
  const auto refused = [&](const Json& tokenizer, const char* config, const char* what,
                           absl::StatusCode code = absl::StatusCode::kUnimplemented) {
    Write(tokenizer.dump(), config, 260);
    const absl::Status status = Make(model(), gguf(), ExportFormat::kGguf).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr((model() / "tokenizer.json").string()), HasSubstr(what)));
    EXPECT_EQ(Names(dir_.path()), Strings{"model"});
  };
  Json tokenizer = Small();
  tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "[a-z]+|\\s+"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  refused(tokenizer, "", "'[a-z]+|\\\\s+'");
  tokenizer = Small();
  tokenizer["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
  refused(tokenizer, "", "add_prefix_space");
  tokenizer = Small();
  const Json s = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  tokenizer["post_processor"] = {{"type", "TemplateProcessing"},
                                 {"single", {s, s, text}},
                                 {"pair", Json::array()},
                                 {"special_tokens", {{"<s>", {{"ids", {258}}}}}}};
  refused(tokenizer, "", "2 tokens on one side of a text");
  tokenizer["post_processor"]["single"] = {s, text};
  refused(tokenizer, R"({"bos_token": "</s>"})", "token 258 on one side of a text, while the BOS is 259");
  tokenizer = Small();
  tokenizer["added_tokens"].push_back({{"id", 260}, {"content", "<tool>"}, {"special", false}});
  refused(tokenizer, "", "ids up to 260, but the model's vocabulary has 260", absl::StatusCode::kFailedPrecondition);

  // A tokenizer of SentencePiece's alone; and the control: no tokenizer at all is no error.
  fs::remove(model() / "tokenizer.json");
  WriteBytes(model() / "tokenizer.model", "x");
  EXPECT_THAT(std::string(Make(model(), gguf(), ExportFormat::kGguf).status().message()), HasSubstr("tokenizer.model"));
  fs::remove(model() / "tokenizer.model");
  const auto made = Make(model(), gguf(), ExportFormat::kGguf);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->pre_tokenizer, "");
}

TEST_F(ExportTokenizerTest, ATemplateInAFileOfItsOwnGoesAlong) {
  Write(Small().dump(), "", 260);
  WriteBytes(model() / "chat_template.jinja", "{{ y }}");
  ASSERT_TRUE(Make(model(), gguf(), ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(gguf()).chat_template, "{{ y }}");
}

TEST_F(ExportTokenizerTest, SentencePiecesVocabularyIsNoTokenizerJson) {
  TinyGguf file = MakeTinyGguf();
  file.Set("tokenizer.ggml.model", GgufText("llama"));
  WriteBytes(gguf(), file.Bytes());
  const absl::Status status = Make(gguf(), hf(), ExportFormat::kHuggingFace).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(gguf().string()), HasSubstr("'llama'")));
  EXPECT_EQ(Names(dir_.path()), Strings{"out.gguf"});
  // The control: as GGUF it stays what it is.
  ASSERT_TRUE(Make(gguf(), dir_.path() / "copy.gguf", ExportFormat::kGguf).ok());
  EXPECT_EQ(VocabularyIn(dir_.path() / "copy.gguf").scores, VocabularyIn(gguf()).scores);
}

}  // namespace
}  // namespace scion::test
