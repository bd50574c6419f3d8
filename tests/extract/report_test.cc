// What a report says is what the files, the routes and the engine say; whatever comes from outside is escaped.

#include "extract/report.h"

#include <functional>
#include <memory>

#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "extract/compare_logits.h"
#include "extract/export.h"
#include "extract/html.h"
#include "tests/extract/report_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// 1234567 -> "1,234,567"
std::string WithCommas(uint64_t number) {
  std::string digits = std::to_string(number), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

// route: of one layer and domain, k = 1.
void SetRoute(TinyModel& tiny, int layer, const std::string& domain, const std::function<int(int token)>& expert_of) {
  TinyTensor& tensor = tiny.Tensor(absl::StrCat("model.layers.", layer, ".mlp.domains.", domain, ".route"));
  for (int t = 0; t < kVocab; ++t) {
    const int32_t expert = expert_of(t);
    std::memcpy(tensor.data.data() + static_cast<size_t>(t) * sizeof(expert), &expert, sizeof(expert));
  }
}

TEST_F(ReportTest, SizesAreThoseOfTheFiles) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  const ReportFigures figures = Write(Options());
  uint64_t all = 0;
  for (const char* file : {"trunk.safetensors", "domains/alpha.safetensors", "domains/beta.safetensors"}) {
    const uint64_t bytes = fs::file_size(model() / file);
    all += bytes;
    EXPECT_THAT(Page(), HasSubstr(absl::StrCat("<td class=\"n\">", WithCommas(bytes), "</td>"))) << file;
    EXPECT_THAT(Page(), HasSubstr(file));
  }
  EXPECT_THAT(Page(), HasSubstr(absl::StrCat("<td class=\"n\">", WithCommas(all), "</td>")));
  // An expert: gate, up and down of 40 x 32 in bf16; a domain's routes: two layers of 260 int32.
  ASSERT_EQ(figures.experts.size(), 2u);
  EXPECT_EQ(figures.experts[0].num_experts, 2 * 3);
  EXPECT_EQ(figures.experts[1].num_experts, 2 * 2);
  for (const ExpertSizes& e : figures.experts) {
    EXPECT_EQ(e.smallest_bytes, 3u * 40 * 32 * 2);
    EXPECT_EQ(e.largest_bytes, 3u * 40 * 32 * 2);
    EXPECT_EQ(e.route_bytes, 2u * kVocab * 4);
  }
  EXPECT_THAT(Page(), HasSubstr("<td class=\"n\">7,680</td>"));
  EXPECT_THAT(Page(), HasSubstr("Not measured"));
  EXPECT_EQ(ToJson(figures)["matrix"], Json());
}

TEST_F(ReportTest, ExpertsOfSeveralSizesAndRouteWeightsAreCounted) {
  TinyModelOptions options = WithVocabulary();
  options.num_experts_per_tok = 2;
  options.route_weights = true;
  TinyModel tiny = MakeTinyModel(options);
  TinyTensor& down = tiny.Tensor("model.layers.2.mlp.domains.alpha.experts.1.down_proj.weight");
  down.dtype = DType::kF32;
  down.data.assign(32u * 40 * 4, '\0');
  WriteModel(tiny);
  const ReportFigures figures = Write(Options());
  EXPECT_EQ(figures.experts.at(0).smallest_bytes, 3u * 40 * 32 * 2);
  EXPECT_EQ(figures.experts.at(0).largest_bytes, 2u * 40 * 32 * 2 + 40 * 32 * 4);
  EXPECT_EQ(figures.experts.at(1).largest_bytes, 3u * 40 * 32 * 2);
  // Two layers, each with two rows of 260 int32 and two weights in fp32.
  for (const ExpertSizes& e : figures.experts) EXPECT_EQ(e.route_bytes, 2u * (2 * kVocab * 4 + 2 * 4));
  EXPECT_THAT(Page(), HasSubstr("<td class=\"n\">7,680 to 10,240</td>"));
}

TEST_F(ReportTest, BalanceIsThatOfRoutesMadeByHand) {
  TinyModel tiny = MakeTinyModel(WithVocabulary());
  // alpha has 3 experts: in layer 1 tokens go by turns but for the last two, in layer 2 all go to expert 1.
  SetRoute(tiny, 1, "alpha", [](int t) { return t >= 258 ? 2 : t % 3; });
  SetRoute(tiny, 2, "alpha", [](int) { return 1; });
  // beta has 2: by text, "x" is 3 of 4 tokens and "y" the fourth.
  SetRoute(tiny, 1, "beta", [](int t) { return t == 'x' ? 1 : 0; });
  SetRoute(tiny, 2, "beta", [](int t) { return t == 'y' ? 1 : 0; });
  WriteModel(tiny);
  WriteText("beta.jsonl", "{\"text\": \"xxy\"}\n{\"text\": \"xxxxxy\"}\n{\"text\": \"xyx\"}\n");
  const ReportFigures figures = Write(WithTexts());
  ASSERT_EQ(figures.balance.size(), 2u);
  const RouteBalance &alpha = figures.balance[0], &beta = figures.balance[1];
  EXPECT_FALSE(alpha.by_text);
  EXPECT_EQ(alpha.layers[0].layer, 1);
  EXPECT_THAT(alpha.layers[0].shares, ElementsAre(86.0 / 260, 86.0 / 260, 88.0 / 260));
  EXPECT_THAT(alpha.layers[1].shares, ElementsAre(0, 1, 0));
  EXPECT_TRUE(beta.by_text);
  EXPECT_THAT(beta.layers[0].shares, ElementsAre(0.25, 0.75));
  EXPECT_THAT(beta.layers[1].shares, ElementsAre(0.75, 0.25));
  for (const char* percent : {">33.1%<", ">33.8%<", ">100.0%<", ">75.0%<", ">25.0%<", ">25.0–75.0%<"}) {
    EXPECT_THAT(Page(), HasSubstr(percent));
  }
  EXPECT_EQ(ToJson(figures)["balance"][1]["by"], "text");
}

TEST_F(ReportTest, EachExpertThatATokenVisitsCounts) {
  TinyModelOptions options = WithVocabulary();
  options.num_experts_per_tok = 2;
  options.domains = {{"alpha", 3}};
  TinyModel tiny = MakeTinyModel(options);
  TinyTensor& route = tiny.Tensor("model.layers.1.mlp.domains.alpha.route");  // [2, 260]
  for (int i = 0; i < 2 * kVocab; ++i) {
    const int32_t expert = i < kVocab ? 0 : (i - kVocab == 'x' ? 1 : 2);
    std::memcpy(route.data.data() + static_cast<size_t>(i) * sizeof(expert), &expert, sizeof(expert));
  }
  WriteModel(tiny);
  WriteText("alpha.txt", "xxxy");
  EXPECT_THAT(Write(WithTexts()).balance.at(0).layers[0].shares, ElementsAre(0.5, 0.375, 0.125));
}

// exp of the mean negative log-likelihood, by double arithmetic on the engine's logits.
double PerplexityOf(Model& model, int domain, const std::vector<std::vector<int32_t>>& windows) {
  absl::StatusOr<KvCache> cache = MakeKvCache(model, 256);
  EXPECT_TRUE(cache.ok());
  double loss = 0, scored = 0;
  for (const std::vector<int32_t>& window : windows) {
    const absl::Status ran = RunPrompt(model, *cache, domain, window, [&](int position, std::span<const float> logits) {
      if (static_cast<size_t>(position) + 1 == window.size()) return;
      double sum = 0;
      for (const float v : logits) sum += std::exp(static_cast<double>(v));
      loss += std::log(sum) - static_cast<double>(logits[static_cast<size_t>(window.at(position + 1))]);
      ++scored;
    });
    EXPECT_TRUE(ran.ok()) << ran;
  }
  return std::exp(loss / scored);
}

TEST_F(ReportTest, PerplexitiesAreThoseOfTheWindowsUnderEveryDomain) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  // The context is 128 tokens, so a document of 200 bytes is two windows, one of 129 has a second window of one token,
  // which is left out. "ab" and "abc" are tokens.
  std::string longer, barely(129, 'q');
  for (int i = 0; i < 200; ++i) longer += static_cast<char>('d' + i % 20);
  WriteText("beta.jsonl", absl::StrCat("{\"text\": \"", longer, "\"}\n\n{\"text\": \"", barely, "\", \"x\": 1}\n"));
  WriteText("aaa.txt", "abcab");  // of no domain
  WriteText("alpha.txt", "hello, world\n");
  WriteText("notes.md", "no text of ours");
  const ReportFigures figures = Write(WithTexts());
  ASSERT_TRUE(figures.matrix.has_value());
  EXPECT_TRUE(figures.matrix->is_measured);
  EXPECT_THAT(figures.matrix->domains, ElementsAre("alpha", "beta"));

  const std::vector<int32_t> bytes(longer.begin(), longer.end());
  const std::vector<std::string> rows = {"alpha", "beta", "aaa"};  // texts of domains first
  const std::string hello = "hello, world\n";
  const std::vector<std::vector<std::vector<int32_t>>> windows = {
      {{hello.begin(), hello.end()}},
      {{bytes.begin(), bytes.begin() + 128}, {bytes.begin() + 128, bytes.end()}, std::vector<int32_t>(128, 'q')},
      {{257, 256}}};
  const std::vector<int64_t> scored = {12, 127 + 71 + 127, 1};
  const auto checkpoint = Checkpoint::Open(model());
  ASSERT_TRUE(checkpoint.ok());
  ThreadPool pool(1);
  ModelOptions options;
  options.tier = *kernels::ChooseTier();
  const auto loaded = Model::Load(**checkpoint, options, pool);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(figures.matrix->rows.size(), rows.size());
  for (size_t r = 0; r < rows.size(); ++r) {
    const DomainMatrix::Row& row = figures.matrix->rows[r];
    EXPECT_EQ(row.text, rows[r]);
    EXPECT_EQ(row.scored_tokens, scored[r]);
    for (int d = 0; d < 2; ++d) {
      const double expected = PerplexityOf(**loaded, d, windows[r]);
      EXPECT_NEAR(row.perplexity[static_cast<size_t>(d)].value_or(0), expected, 1e-5 * expected) << rows[r] << d;
      char text[32];
      const char* format = expected < 100 ? ">%.2f</text>" : expected < 1e5 ? ">%.1f</text>" : ">%.1e</text>";
      std::snprintf(text, sizeof(text), format, expected);
      EXPECT_THAT(Page(), HasSubstr(text));
    }
  }
  EXPECT_EQ(OwnPerplexity(*figures.matrix, figures.matrix->rows[0]), figures.matrix->rows[0].perplexity[0]);
  EXPECT_EQ(BestOtherPerplexity(*figures.matrix, figures.matrix->rows[0]), figures.matrix->rows[0].perplexity[1]);
  EXPECT_EQ(OwnPerplexity(*figures.matrix, figures.matrix->rows[2]), std::nullopt);
  EXPECT_THAT(Page(), HasSubstr("of no domain"));
  EXPECT_THAT(Page(), HasSubstr(">measured<"));
}

TEST_F(ReportTest, TextsThatAreNoneAreRefusedByName) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  ExpectRefused(WithTexts(), absl::StatusCode::kNotFound, "texts");
  fs::create_directories(texts());
  ExpectRefused(WithTexts(), absl::StatusCode::kNotFound, "has no text");
  WriteText("alpha.txt", "fine");
  Write(WithTexts());  // the control
  fs::remove(out());
  WriteText("beta.txt", "");
  ExpectRefused(WithTexts(), absl::StatusCode::kInvalidArgument, "beta.txt: is empty");
  WriteText("beta.txt", "\xff\xfe");
  ExpectRefused(WithTexts(), absl::StatusCode::kInvalidArgument, "beta.txt: is not text");
  WriteText("beta.txt", "x");
  ExpectRefused(WithTexts(), absl::StatusCode::kInvalidArgument, "beta.txt: no text of two tokens");
  WriteText("beta.txt", "fine");
  WriteText("beta.jsonl", "{\"text\": \"fine\"}");
  ExpectRefused(WithTexts(), absl::StatusCode::kInvalidArgument, "two texts 'beta'");
  fs::remove(texts() / "beta.txt");
  WriteText("beta.jsonl", "{\"words\": \"fine\"}");
  ExpectRefused(WithTexts(), absl::StatusCode::kInvalidArgument, "beta.jsonl: 'text'");
  fs::remove(texts() / "beta.jsonl");
  fs::remove(model() / "tokenizer.json");
  ExpectRefused(WithTexts(), absl::StatusCode::kNotFound, "needs the model's tokenizer");
}

TEST_F(ReportTest, HostileNamesStayText) {
  TinyModel tiny = MakeTinyModel(WithVocabulary());
  WriteModel(tiny);
  LockFile lock = *Sign({.model = model(), .version = "<img src=x onerror=alert(1)>", .now = TestTime()});
  lock.lineage[0].source = "</td></table><script>alert('source')</script>";
  lock.lineage[0].verb = "\"'&<b>";
  lock.lineage[0].domains = {"<i>"};
  WriteBytes(model() / "scion.lock.json", SerializeLockFile(lock));
  const fs::path named = temp() / "<script>alert(1)<script>";
  fs::rename(model(), named);
  WriteText("\"><svg onload=alert(2)>.txt", "hello");
  WriteText("\xff\xc3\x28\x01.txt", "hello");
  WriteText("\xe2\x80\xae turned.txt", "hello");
  ReportOptions options = WithTexts();
  options.model = named;
  WriteBytes(temp() / "folds.json",
             R"([{"domain": "alpha", "method": "<u>lsq</u>", "width": 1, "route_channels": false, "bytes": 1,
                  "model_bytes": 2}])");
  options.folds = {temp() / "folds.json"};
  Write(options);
  const std::string page = Page();
  for (const char* tag : {"<script", "<img", "<b>", "<i>", "<u>", "<svg onload", "onload=alert(2)>.txt"}) {
    EXPECT_THAT(page, Not(HasSubstr(tag)));
  }
  for (const char* shown : {"&lt;script&gt;alert(1)&lt;script&gt;", "&lt;script&gt;alert(&#39;source&#39;)&lt;/script",
                            "&quot;&#39;&amp;&lt;b&gt;", "&quot;&gt;&lt;svg onload=alert(2)&gt;", "&lt;u&gt;lsq"}) {
    EXPECT_THAT(page, HasSubstr(shown));
  }
  for (const char* bytes : {"\xff", "\x01", "\xe2\x80\xae"}) EXPECT_THAT(page, Not(HasSubstr(bytes)));
}

TEST_F(ReportTest, EscapedTextIsCutAtCharacters) {
  EXPECT_EQ(EscapeHtml("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(EscapeHtml("\xe6\x96\x87\xe4\xbb\xb6 x", 2), "\xe6\x96\x87\xe4\xbb\xb6\xe2\x80\xa6");
  EXPECT_EQ(EscapeHtml("ab", 2), "ab");
  EXPECT_EQ(EscapeHtml("a\n\xe6\x96"), "a\xef\xbf\xbd\xef\xbf\xbd");
}

TEST_F(ReportTest, PageNeedsNothingElse) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  WriteText("alpha.txt", "hello, world\n");
  Write(WithTexts());
  for (const char* fetched :
       {"http:", "https:", "//", "url(", " src=", " href=", "@import", "<script", "<link", "<iframe"}) {
    EXPECT_THAT(Page(), Not(HasSubstr(fetched)));
  }
  for (const char* said : {"color-scheme:light dark", "@media (prefers-color-scheme:dark){:root{--page:",
                           "content=\"default-src 'none'; style-src 'unsafe-inline'\""}) {
    EXPECT_THAT(Page(), HasSubstr(said));
  }
}

TEST_F(ReportTest, SameModelGivesTheSamePage) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  WriteText("alpha.txt", "hello, world\n");
  Write(WithTexts());
  const std::string first = Page();
  ReportOptions options = WithTexts();
  options.num_threads = 1;
  Write(options);
  EXPECT_EQ(Page(), first);
}

TEST_F(ReportTest, LineageAndGenerationsAreTheLocks) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  EXPECT_TRUE(Write(Options()).generations.empty());
  EXPECT_THAT(Page(), HasSubstr("no lock"));
  const auto lock = Sign({.model = model(), .version = "9.8.7", .now = TestTime()});
  ASSERT_TRUE(lock.ok());
  Write(Options());
  EXPECT_THAT(Page(), HasSubstr(LockSha256(*lock)));
  EXPECT_THAT(Page(), HasSubstr("2023-11-14T22:13:20Z</td><td class=\"\">lock</td>"));
  EXPECT_THAT(Page(), HasSubstr("9.8.7"));
  EXPECT_THAT(Page(), HasSubstr("<td class=\"\">beta</td><td class=\"n\">1</td><td class=\"\">yes</td>"));
}

TEST_F(ReportTest, ModelsWithoutDomainsShowWhatTheyHave) {
  for (const char* type : {"llama", "mixtral"}) {
    TinyModelOptions options = WithVocabulary();
    options.model_type = type;
    fs::remove_all(model());
    WriteModel(MakeTinyModel(options));
    WriteText("some.txt", "hello");
    const ReportFigures figures = Write(WithTexts());
    EXPECT_TRUE(figures.balance.empty() && figures.experts.empty());
    EXPECT_EQ(figures.is_gate_routed, type == std::string_view("mixtral"));
    EXPECT_THAT(Page(), HasSubstr(figures.is_gate_routed ? "A learned gate" : "A dense model"));
    EXPECT_THAT(Page(), HasSubstr(WithCommas(fs::file_size(model() / "model.safetensors"))));
    ASSERT_TRUE(figures.matrix.has_value());
    EXPECT_THAT(figures.matrix->domains, ElementsAre("default"));
    EXPECT_THAT(Page(), Not(HasSubstr("Route balance")));
  }
}

TEST_F(ReportTest, WhatIsThereIsNeverReplaced) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  WriteBytes(out(), "mine");
  EXPECT_EQ(WriteReport(Options()).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Page(), "mine");
  const auto before = ReadTree(model());
  ReportOptions inside = Options();
  inside.out = model() / "report.html";
  EXPECT_EQ(WriteReport(inside).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTree(model()), before);
  ReportOptions nowhere = Options();
  nowhere.out = temp() / "no" / "page.html";
  EXPECT_EQ(WriteReport(nowhere).status().code(), absl::StatusCode::kNotFound);
  ReportOptions none = Options();
  none.model = temp() / "none";
  none.out = temp() / "other.html";
  ExpectRefused(none, absl::StatusCode::kNotFound, "none");
}

TEST_F(ReportTest, DamagedModelIsRefused) {
  WriteModel(MakeTinyModel(WithVocabulary()));
  Write(Options());  // the control
  fs::remove(out());
  const fs::path file = model() / "domains/beta.safetensors";
  const std::string bytes = ReadBytes(file);
  WriteBytes(file, bytes.substr(0, bytes.size() - 4));
  ExpectRefused(Options(), absl::StatusCode::kDataLoss, "beta.safetensors");
}

TEST_F(ReportTest, WideModelsAreCutOnThePageAndWholeInTheFigures) {
  TinyModelOptions wide = WithVocabulary();
  wide.domains = {{"alpha", 100}};
  for (int d = 0; d < 40; ++d) wide.domains.push_back({absl::StrCat("d", d), 1});
  wide.moe_intermediate_size = 8;
  WriteModel(MakeTinyModel(wide));
  ReportOptions options = Options();
  options.folds = {temp() / "folds.json"};
  std::string folds;
  for (int width = 1; width <= 250; ++width) {
    absl::StrAppend(&folds, width == 1 ? "[" : ",", R"({"domain": "alpha", "method": "lsq", "width": )", width,
                    R"(, "route_channels": false, "bytes": 1, "model_bytes": 2})");
  }
  WriteBytes(options.folds[0], folds + "]");
  const ReportFigures figures = Write(options);
  EXPECT_EQ(figures.balance.at(0).layers[0].shares.size(), 100u);
  EXPECT_EQ(ToJson(figures)["balance"].size(), 41u);
  EXPECT_EQ(ToJson(figures)["folds"].size(), 250u);
  for (const char* shown : {"2 layers of 100 experts; the plot shows 64 of 64 at most", "expert 63:",
                            "9 more domains are in --json", "50 more are in --json", "<td class=\"n\">200</td>"}) {
    EXPECT_THAT(Page(), HasSubstr(shown));
  }
  for (const char* not_shown : {"expert 64:", "<td class=\"n\">201</td>"})
    EXPECT_THAT(Page(), Not(HasSubstr(not_shown)));
}

TEST_F(ReportTest, GgufFilesAreMeasuredWithTheirOwnTokenizer) {
  TinyModelOptions options = WithVocabulary();
  options.model_type = "llama";
  WriteModel(MakeTinyModel(options));
  WriteText("some.txt", "hello, world");
  const double perplexity = Write(WithTexts()).matrix.value().rows.at(0).perplexity[0].value();
  ReportOptions report = WithTexts();
  report.model = temp() / "model.gguf";
  const auto exported = Export({.model = model(), .out = report.model, .format = ExportFormat::kGguf});
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(Write(report).matrix.value().rows.at(0).perplexity[0], perplexity);
  EXPECT_THAT(Page(), HasSubstr("model.gguf"));
}

}  // namespace
}  // namespace scion::test
