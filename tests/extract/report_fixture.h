// What the tests of reports share: a model with a tokenizer, texts, and the page written of them.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "extract/report.h"
#include "tests/engine/text/text_test_util.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {

inline constexpr int kVocab = 260;  // of text_test::SmallTokenizer: every byte is a token

inline TinyModelOptions WithVocabulary() {
  TinyModelOptions options;
  options.vocab_size = kVocab;
  return options;
}

class ReportTest : public ::testing::Test {
 protected:
  fs::path temp() const { return temp_.path(); }
  fs::path model() const { return temp() / "model"; }
  fs::path texts() const { return temp() / "texts"; }
  fs::path out() const { return temp() / "page.html"; }

  void WriteModel(const TinyModel& tiny) {
    WriteTinyModel(tiny, model());
    WriteBytes(model() / "tokenizer.json", text_test::SmallTokenizer().dump());
  }
  void WriteText(const std::string& name, std::string_view text) {
    fs::create_directories(texts());
    WriteBytes(texts() / name, text);
  }

  ReportOptions Options() const {
    return {.model = model(),
            .out = out(),
            .tier = *kernels::ChooseTier(),
            .num_threads = 2,
            .version = "1.2.3-test",
            .now = TestTime()};
  }
  ReportOptions WithTexts() const {
    ReportOptions options = Options();
    options.text = texts();
    return options;
  }
  ReportFigures Write(const ReportOptions& options) {
    fs::remove(options.out);
    absl::StatusOr<ReportFigures> figures = WriteReport(options);
    EXPECT_TRUE(figures.ok()) << figures.status();
    return figures.ok() ? *std::move(figures) : ReportFigures();
  }
  std::string Page() const { return ReadBytes(out()); }
  void ExpectRefused(const ReportOptions& options, absl::StatusCode code, const std::string& why) {
    const absl::Status status = WriteReport(options).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), ::testing::HasSubstr(why));
    EXPECT_FALSE(fs::exists(options.out));
    EXPECT_THAT(Names(temp()), ::testing::Not(::testing::Contains(::testing::HasSubstr("partial"))));
  }

 private:
  TempDir temp_;
};

}  // namespace scion::test
