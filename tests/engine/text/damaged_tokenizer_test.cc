// A damaged or strange tokenizer.json is refused with a message that names the place; an undamaged one loads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using text_test::Json;

struct Damage {
  const char* name;
  std::function<void(Json&)> apply;
  StatusCode code;
  const char* message;  // part of it
};

void SetSplit(Json& json, const Json& pattern, const char* behavior = "Isolated") {
  json["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}},
                             {{"type", "ByteLevel"}, {"use_regex", false}, {"add_prefix_space", false}}}}};
}

void SetRegex(Json& json, const char* regex) { SetSplit(json, {{"Regex", regex}}); }

void SetTemplate(Json& json, const char* single, const char* special_tokens) {
  json["post_processor"] = {
      {"type", "TemplateProcessing"}, {"single", Json::parse(single)}, {"special_tokens", Json::parse(special_tokens)}};
}

const StatusCode kInvalid = StatusCode::kInvalidArgument;
const StatusCode kUnimplemented = StatusCode::kUnimplemented;
const StatusCode kExhausted = StatusCode::kResourceExhausted;

const Damage kDamages[] = {
    {"NoModel", [](Json& j) { j.erase("model"); }, kInvalid, "model"},
    {"ModelIsAList", [](Json& j) { j["model"] = Json::array(); }, kInvalid, "model"},
    {"WordPiece", [](Json& j) { j["model"]["type"] = "WordPiece"; }, kUnimplemented, "WordPiece"},
    {"Dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, kUnimplemented, "dropout"},
    {"ByteFallback", [](Json& j) { j["model"]["byte_fallback"] = true; }, kUnimplemented, "byte_fallback"},
    {"SubwordPrefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, kUnimplemented, "##"},
    {"NoVocabulary", [](Json& j) { j["model"].erase("vocab"); }, kInvalid, "vocab"},
    {"NegativeId", [](Json& j) { j["model"]["vocab"]["ab"] = -1; }, kInvalid, "'ab'"},
    {"HugeId", [](Json& j) { j["model"]["vocab"]["ab"] = 9007199254740993; }, kInvalid, "'ab'"},
    {"IdFarBeyondTheTokens", [](Json& j) { j["model"]["vocab"]["zz"] = 4000000; }, kInvalid, "largest id"},
    {"IdIsAString", [](Json& j) { j["model"]["vocab"]["ab"] = "256"; }, kInvalid, "'ab'"},
    {"IdIsAFraction", [](Json& j) { j["model"]["vocab"]["ab"] = 256.5; }, kInvalid, "'ab'"},
    {"IdTwice", [](Json& j) { j["model"]["vocab"]["abc"] = 256; }, kInvalid, "id 256"},
    {"ByteMissing", [](Json& j) { j["model"]["vocab"].erase("\u0120"); }, kInvalid, "byte 32"},
    {"NoMerges", [](Json& j) { j["model"].erase("merges"); }, kInvalid, "merges"},
    {"MergeOfUnknown", [](Json& j) { j["model"]["merges"].push_back("a \u4e2d"); }, kInvalid, "merge 2"},
    {"MergeIntoUnknown", [](Json& j) { j["model"]["merges"].push_back("b c"); }, kInvalid, "'bc'"},
    {"MergeOfOne", [](Json& j) { j["model"]["merges"].push_back("ab"); }, kInvalid, "merge 2"},
    {"MergeOfThree", [](Json& j) { j["model"]["merges"].push_back("a b c"); }, kInvalid, "merge 2"},
    {"MergeIsANumber", [](Json& j) { j["model"]["merges"].push_back(7); }, kInvalid, "merge 2"},
    {"MergePairOfNumbers",
     [](Json& j) {
       j["model"]["merges"].push_back({1, 2});
     },
     kInvalid, "merge 2"},
    {"AddedTokensIsAnObject", [](Json& j) { j["added_tokens"] = Json::object(); }, kInvalid, "added_tokens"},
    {"AddedWithoutId", [](Json& j) { j["added_tokens"][0].erase("id"); }, kInvalid, "id"},
    {"AddedEmpty", [](Json& j) { j["added_tokens"][0]["content"] = ""; }, kInvalid, "content"},
    {"AddedLong", [](Json& j) { j["added_tokens"][0]["content"] = std::string(257, 'x'); }, kInvalid, "256 bytes"},
    {"AddedTwice", [](Json& j) { j["added_tokens"][1]["content"] = "<s>"; }, kInvalid, "'<s>' twice"},
    {"AddedIdTaken", [](Json& j) { j["added_tokens"][0]["id"] = 257; }, kInvalid, "id 257"},
    {"AddedOtherIdThanInVocabulary", [](Json& j) { j["added_tokens"][0]["content"] = "ab"; }, kInvalid, "'ab'"},
    {"AddedLstrip", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; }, kUnimplemented, "lstrip"},
    {"AddedSingleWord", [](Json& j) { j["added_tokens"][0]["single_word"] = true; }, kUnimplemented, "single_word"},
    {"Lowercase",
     [](Json& j) {
       j["normalizer"] = {{"type", "Lowercase"}};
     },
     kUnimplemented, "'Lowercase'"},
    {"NormalizerWithoutType", [](Json& j) { j["normalizer"] = Json::object(); }, kInvalid, "normalizer"},
    {"NoPreTokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }, kUnimplemented, "pre_tokenizer"},
    {"Metaspace",
     [](Json& j) {
       j["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     kUnimplemented, "'Metaspace'"},
    {"DigitsAlone",
     [](Json& j) {
       j["pre_tokenizer"] = {{"type", "Digits"}};
     },
     kUnimplemented, "without ByteLevel"},
    {"SplitRemoved",
     [](Json& j) {
       SetSplit(j, {{"Regex", "a"}}, "Removed");
     },
     kUnimplemented, "'Removed'"},
    {"SplitWithoutPattern", [](Json& j) { SetSplit(j, Json::object()); }, kInvalid, "String"},
    {"RegexUnbalanced", [](Json& j) { SetRegex(j, "(a"); }, kInvalid, "regex '(a'"},
    {"RegexOpenClass", [](Json& j) { SetRegex(j, "[a"); }, kUnimplemented, "']'"},
    {"RegexBackReference", [](Json& j) { SetRegex(j, "(a+)\\1"); }, kUnimplemented, "'\\1'"},
    {"RegexRecursion", [](Json& j) { SetRegex(j, "(a(?R)?b)"); }, kUnimplemented, "group"},
    {"RegexVerb", [](Json& j) { SetRegex(j, "(*LIMIT_MATCH=1)a"); }, kUnimplemented, "group"},
    {"RegexHugeRepeat", [](Json& j) { SetRegex(j, "[a-z]{65535}"); }, kUnimplemented, "255"},
    {"RegexNestedRepeats", [](Json& j) { SetRegex(j, "(?:(?:(?:a{255}){255}){255}){255}"); }, kInvalid, "too large"},
    {"RegexNestedGroups", [](Json& j) { SetRegex(j, (std::string(2000, '(') + "a" + std::string(2000, ')')).c_str()); },
     kInvalid, "nested"},
    {"RegexLong", [](Json& j) { SetRegex(j, std::string(10000, 'a').c_str()); }, kInvalid, "8192"},
    {"RegexEmpty", [](Json& j) { SetRegex(j, ""); }, kInvalid, "empty"},
    {"Bert",
     [](Json& j) {
       j["post_processor"] = {{"type", "BertProcessing"}};
     },
     kUnimplemented, "'BertProcessing'"},
    {"TemplateWithoutText", [](Json& j) { SetTemplate(j, "[]", "{}"); }, kInvalid, "single"},
    {"TemplateOfUnknownToken",
     [](Json& j) { SetTemplate(j, R"([{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}])", "{}"); }, kInvalid,
     "'<x>'"},
    {"TemplateIdOutOfRange",
     [](Json& j) {
       SetTemplate(j, R"([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}])", R"({"<s>": {"ids": [260]}})");
     },
     kInvalid, "260"},
    {"TemplateTextTwice",
     [](Json& j) { SetTemplate(j, R"([{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}])", "{}"); }, kUnimplemented,
     "twice"},
    {"NoDecoder", [](Json& j) { j["decoder"] = nullptr; }, kUnimplemented, "decoder"},
    {"WordPieceDecoder", [](Json& j) { j["decoder"]["type"] = "WordPiece"; }, kUnimplemented, "'WordPiece'"},
    {"ManySteps",
     [](Json& j) {
       Json steps = Json::array();
       for (int i = 0; i < 40; ++i) steps.push_back({{"type", "Digits"}});
       j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
     },
     kExhausted, "32 steps"},
};

TEST(DamagedTokenizerTest, TheUndamagedOneLoads) {
  Json json = text_test::SmallTokenizer();
  EXPECT_TRUE(Tokenizer::Parse(json.dump(), "").ok());
  SetRegex(json, "[a-z]+|\\s+(?!\\S)|(?i:'s)|\\p{N}{1,3}");
  EXPECT_TRUE(Tokenizer::Parse(json.dump(), "").ok());
  SetSplit(json, {{"String", "(a"}});
  EXPECT_TRUE(Tokenizer::Parse(json.dump(), "").ok());
  SetTemplate(json, R"([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}])", R"({"<s>": {"ids": [258]}})");
  EXPECT_TRUE(Tokenizer::Parse(json.dump(), R"({"bos_token": "<s>"})").ok());
}

TEST(DamagedTokenizerTest, EachDamageIsRefusedByName) {
  for (const Damage& damage : kDamages) {
    SCOPED_TRACE(damage.name);
    Json json = text_test::SmallTokenizer();
    damage.apply(json);
    const auto tokenizer = Tokenizer::Parse(json.dump(), "");
    EXPECT_EQ(tokenizer.status().code(), damage.code) << tokenizer.status().ToString();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(damage.message));
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json"));
  }
}

TEST(DamagedTokenizerTest, TextThatIsNoJsonIsRefused) {
  const std::string sound = text_test::SmallTokenizer().dump();
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  const std::string twice = absl::StrCat("{\"model\":{},", sound.substr(1));
  std::string invalid_utf8 = sound;
  invalid_utf8[sound.find("<s>")] = '\xFF';
  for (const std::string& text : {std::string(), std::string("[]"), std::string("null"), deep, twice, invalid_utf8,
                                  sound + "x", std::string("\0\0", 2)}) {
    const auto tokenizer = Tokenizer::Parse(text, "");
    EXPECT_EQ(tokenizer.status().code(), kInvalid) << text.substr(0, 40) << tokenizer.status().ToString();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer.json"));
  }
  EXPECT_EQ(Tokenizer::Parse(std::string((64 << 20) + 1, ' '), "").status().code(), kExhausted);
}

TEST(DamagedTokenizerTest, ATruncatedFileIsRefusedWhereverItEnds) {
  const std::string sound = text_test::SmallTokenizer().dump();
  for (size_t size = 0; size < sound.size(); size += 37) {
    EXPECT_EQ(Tokenizer::Parse(sound.substr(0, size), "").status().code(), kInvalid) << size;
  }
}

TEST(DamagedTokenizerTest, TheConfigIsNotBelievedEither) {
  const std::string sound = text_test::SmallTokenizer().dump();
  EXPECT_TRUE(Tokenizer::Parse(sound, R"({"bos_token": "<s>", "chat_template": "x", "model_max_length": 1e30})").ok());
  for (const char* config : {"[]", "{", R"({"bos_token": "<no>"})", R"({"eos_token": 7})", R"({"chat_template": 7})",
                             R"({"bos_token": {}})", R"({"chat_template": [7]})", R"({"add_bos_token": "yes"})"}) {
    const auto tokenizer = Tokenizer::Parse(sound, config);
    EXPECT_EQ(tokenizer.status().code(), kInvalid) << config;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("tokenizer_config.json"));
  }
}

TEST(DamagedTokenizerTest, AMissingFileIsNamed) {
  const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / "scion_no_tokenizer";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  const auto missing = Tokenizer::Load(directory);
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("tokenizer.json"));
  std::ofstream(directory / "tokenizer.json") << text_test::SmallTokenizer().dump();
  EXPECT_TRUE(Tokenizer::Load(directory).ok());
  std::ofstream(directory / "tokenizer_config.json") << "";
  EXPECT_EQ(Tokenizer::Load(directory).status().code(), kInvalid);
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace scion
