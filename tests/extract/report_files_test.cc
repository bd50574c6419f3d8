// Figures that a report takes from files: perplexities, and what densify said of folds.

#include "tests/extract/report_fixture.h"

namespace scion::test {
namespace {

using ::testing::HasSubstr;
using ReportFilesTest = ReportTest;

TEST_F(ReportFilesTest, FiguresFromAFileAreCalledRead) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  ReportOptions options = Options();
  options.matrix = temp() / "matrix.json";
  const auto write = [&](std::string_view text) { WriteBytes(options.matrix, text); };
  // The two forms that there are, texts in any order.
  write(R"({"zulu": {"scored_tokens": 5, "perplexity": {"alpha": 7.25, "beta": 123456.0}},
            "beta": {"scored_tokens": 1234, "perplexity": {"alpha": 321.55, "beta": null}, "bits_per_byte": 2}})");
  ReportFigures figures = Write(options);
  EXPECT_FALSE(figures.matrix->is_measured);
  EXPECT_EQ(figures.matrix->rows[0].text, "beta");
  EXPECT_EQ(figures.matrix->rows[1].text, "zulu");
  for (const char* shown :
       {"read, not measured", "matrix.json", ">7.25</text>", ">321.6</text>", ">1.2e+05</text>", "1,234"}) {
    EXPECT_THAT(Page(), HasSubstr(shown));
  }
  write(R"({"rows": [{"text": "alpha", "scored_tokens": 1, "perplexity": {"alpha": 2, "beta": 3}}], "domains": []})");
  EXPECT_EQ(Write(options).matrix->rows.at(0).perplexity[1], 3.0);

  fs::remove(out());
  const auto refused = [&](std::string_view text, const std::string& why) {
    write(text);
    ExpectRefused(options, absl::StatusCode::kInvalidArgument, why);
    ExpectRefused(options, absl::StatusCode::kInvalidArgument, "matrix.json");
  };
  refused("{", "matrix.json");
  refused("[]", "is not an object");
  refused("{}", "has no rows");
  refused(R"({"rows": {}})", "'rows' is not a list");
  refused(R"({"a": {"scored_tokens": 1, "perplexity": {"alpha": 2}}})", "no perplexity under the model's domain beta");
  refused(R"({"a": {"scored_tokens": 1, "perplexity": {"alpha": 2, "beta": 2, "x": 2}}})", "a domain 'x'");
  refused(R"({"a": {"scored_tokens": 1, "perplexity": {"alpha": 0.5, "beta": 2}}})", "below 1");
  refused(R"({"a": {"scored_tokens": 1, "perplexity": {"alpha": "2", "beta": 2}}})", "alpha");
  refused(R"({"a": {"scored_tokens": -1, "perplexity": {"alpha": 2, "beta": 2}}})", "scored_tokens");
  fs::remove(options.matrix);
  ExpectRefused(options, absl::StatusCode::kNotFound, "matrix.json");
}

TEST_F(ReportFilesTest, FoldsAreShownAsDensifySaidThem) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  ReportOptions options = Options();
  options.folds = {temp() / "one.json", temp() / "more.json"};
  const std::string one =
      R"({"domain": "beta", "method": "lsq", "width": 2, "route_channels": true, "bytes": 4321, "model_bytes": 8642,
          "held_out": {"scored_tokens": 100, "source_perplexity": 10.0, "perplexity": 12.34, "perplexity_ratio": 1.234,
                       "kl_divergence": 0.1875, "top1_agreement": 0.625}})";
  WriteBytes(options.folds[0], one);
  WriteBytes(options.folds[1], R"([{"domain": "alpha", "method": "average", "width": 1, "route_channels": false,
                                    "bytes": 7, "model_bytes": 0}])");
  const ReportFigures figures = Write(options);
  ASSERT_EQ(figures.folds.size(), 2u);
  EXPECT_EQ(figures.folds[0].domain, "alpha");
  EXPECT_EQ(figures.folds[1].width, 2);
  for (const char* shown :
       {">1.234<", ">12.34<", ">0.1875<", ">62.5%<", ">4,321<", ">50.0%<", "lsq, route channels", ">not measured<"}) {
    EXPECT_THAT(Page(), HasSubstr(shown));
  }
  fs::remove(out());
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& why) {
    std::string text = one;
    text.replace(text.find(from), from.size(), to);
    WriteBytes(options.folds[0], text);
    ExpectRefused(options, absl::StatusCode::kInvalidArgument, why);
  };
  refused("\"beta\"", "\"gamma\"", "one.json: has a fold of the domain 'gamma'");
  refused("\"width\": 2", "\"width\": 0", "width");
  refused("0.625", "1.625", "top1_agreement");
  refused("12.34", "-12.34", "perplexity");
  refused("\"method\"", "\"way\"", "method");
}

TEST_F(ReportFilesTest, FoldsAreInTheOrderOfDomainMethodChannelsAndWidth) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  ReportOptions options = Options();
  options.folds = {temp() / "folds.json"};
  Json folds = Json::array();
  for (const char* domain : {"beta", "alpha"}) {
    for (const char* method : {"weighted", "average"}) {
      for (const bool channels : {true, false}) {
        for (const int width : {10, 2}) {
          folds.push_back({{"domain", domain},
                           {"method", method},
                           {"route_channels", channels},
                           {"width", width},
                           {"bytes", 1},
                           {"model_bytes", 2}});
        }
      }
    }
  }
  WriteBytes(options.folds[0], folds.dump());
  const Json shown = ToJson(Write(options))["folds"];
  ASSERT_EQ(shown.size(), 16u);
  for (size_t i = 0; i < 16; ++i) {
    for (const char* key : {"domain", "method", "route_channels", "width"})
      EXPECT_EQ(shown[i][key], folds[15 - i][key]);
  }
}

}  // namespace
}  // namespace scion::test
