// Every figure stands on the page where it belongs: in the row, the column and the cell that say what it is of.

#include "extract/report_page.h"

#include <map>
#include <regex>
#include <tuple>

#include "absl/strings/str_replace.h"
#include "extract/report.h"
#include "extract/report_plots.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

Json LineageEntry(const std::string& time, const std::string& verb, const std::vector<std::string>& domains,
                  const std::string& source, const std::string& source_lock, const std::string& version) {
  return {{"time", time},     {"verb", verb},       {"domains", domains},
          {"source", source}, {"version", version}, {"source_lock_sha256", source_lock}};
}

// A model of three domains, every number another one.
ReportFigures Figures() {
  ReportFigures f;
  f.name = "plum";
  f.model = {{"model_type", "scion"},
             {"dtype", "BF16"},
             {"vocab_size", 4096},
             {"hidden_size", 96},
             {"max_position_embeddings", 1024},
             {"num_hidden_layers", 5},
             {"sparse_layers", {3, 4}},
             {"num_experts_per_tok", 1},
             {"default_domain", "law"},
             {"parameters", 7'654'321},
             {"bytes", 10'000'000}};
  f.model["parts"] = {
      {{"name", "trunk"}, {"parameters", 3'000'003}, {"bytes", 6'000'000}},
      {{"name", "code"}, {"parameters", 1'000'001}, {"bytes", 3'000'000}, {"experts", 2}},
      {{"name", "law"}, {"parameters", 500'005}, {"bytes", 900'000}, {"experts", 3}},
      {{"name", "zh"}, {"parameters", 70'007}, {"bytes", 100'000}, {"experts", 1}},
  };
  f.model["parts"][0]["files"] = {{{"path", "trunk-1.safetensors"}, {"bytes", 4'000'001}, {"generation", 0}},
                                  {{"path", "trunk-2.safetensors"}, {"bytes", 1'999'999}, {"generation", 0}}};
  f.model["parts"][1]["files"] =
      Json::array({{{"path", "domains/code.g7.safetensors"}, {"bytes", 3'000'000}, {"generation", 7}}});
  f.model["parts"][2]["files"] =
      Json::array({{{"path", "domains/law.safetensors"}, {"bytes", 900'000}, {"generation", 1}}});
  f.model["parts"][3]["files"] =
      Json::array({{{"path", "domains/zh.g2.safetensors"}, {"bytes", 100'000}, {"generation", 2}}});
  f.model["lock"] = {{"lock_sha256", "5ca1ab1e"},
                     {"lineage",
                      {LineageEntry("2024-01-01", "upcycle", {"code", "law"}, "parent", "", "1.0"),
                       LineageEntry("2024-02-02", "graft", {"zh"}, "donor@cn", "0123456789abcdef", "1.1"),
                       LineageEntry("2024-03-03", "drop", {"fr"}, "plum", "fedcba9876543210", "1.2")}}};
  f.generations = Json::array({{{"name", "code"},
                                {"generations",
                                 {{{"generation", 3}, {"file", "code.g3"}, {"bytes", 2'900'000}, {"in_use", false}},
                                  {{"generation", 7}, {"file", "code.g7"}, {"bytes", 3'000'000}, {"in_use", true}}}}}});
  f.matrix = DomainMatrix{.domains = {"code", "law", "zh"},
                          .rows = {{.text = "code", .scored_tokens = 1234, .perplexity = {8.5, 17.0, 850.5}},
                                   {.text = "law", .scored_tokens = 77, .perplexity = {24.0, 12.0, 36.25}},
                                   {.text = "news", .scored_tokens = 5678, .perplexity = {250.0, 200.0, std::nullopt}}},
                          .source = "hand",
                          .is_measured = true};
  f.experts = {{"code", 4, 1000, 1000, 32'768}, {"law", 6, 500, 2000, 32'769}, {"zh", 2, 30, 30, 32'770}};
  f.balance = {{.domain = "code", .by_text = true, .layers = {{3, {0.25, 0.75}}, {4, {0.5, 0.5}}}},
               {.domain = "law", .by_text = false, .layers = {{3, {0.1, 0.2, 0.7}}, {4, {0.3, 0.34, 0.36}}}}};
  const TextComparison good{
      .scored_tokens = 9, .source_perplexity = 10, .perplexity = 12.5, .kl_divergence = 0.25, .top1_agreement = 0.875};
  const TextComparison poor{
      .scored_tokens = 9, .source_perplexity = 10, .perplexity = 25, .kl_divergence = 0.5, .top1_agreement = 0.6};
  f.folds = {
      {.domain = "code",
       .method = "lsq",
       .width = 2,
       .has_channels = true,
       .bytes = 4'000'000,
       .model_bytes = 9'000'000,
       .comparison = good},
      {.domain = "law", .method = "average", .width = 1, .bytes = 3'000'000, .model_bytes = 0, .comparison = poor},
      {.domain = "zh", .method = "weighted", .width = 4, .bytes = 5, .model_bytes = 10, .comparison = {}}};
  f.version = "1.2.3";
  f.time = "2024-04-04";
  return f;
}

// Without tags; a bar becomes "[37.50%]", "[37.50% trunk]" if it is the trunk's.
std::string TextOf(std::string html) {
  html = std::regex_replace(html, std::regex("<rect width=\"([0-9.]+%)\"[^>]*class=\"(\\w*)\"/>"), "[$1 $2]");
  html = std::regex_replace(html, std::regex("<title>[^<]*</title>|<[^>]*>"), "");
  return absl::StrReplaceAll(html, {{" ]", "]"}});
}

// The rows of all tables, heads left out.
std::vector<std::vector<std::string>> TableRows(const std::string& page) {
  std::vector<std::vector<std::string>> rows;
  const std::regex row("<tr>(<td.*?)</tr>"), cell("<td[^>]*>(.*?)</td>");
  for (std::sregex_iterator r(page.begin(), page.end(), row), end; r != end; ++r) {
    const std::string cells = (*r)[1];
    rows.emplace_back();
    for (std::sregex_iterator c(cells.begin(), cells.end(), cell); c != end; ++c) {
      rows.back().push_back(TextOf((*c)[1]));
    }
  }
  return rows;
}

// A plot of the page, read by where things lie: a cell is of the column whose heading stands at its x, of the row whose
// name stands at its y.
class Plot {
 public:
  struct Cell {
    std::string text, css_class, tip;
    bool is_framed = false, is_strong = false;
  };

  Plot(const std::string& page, const std::string& title) {
    const size_t begin = page.find("<title>" + title + "</title>");
    EXPECT_NE(begin, std::string::npos) << title;
    const std::string svg = page.substr(begin, page.find("</svg>", begin) - begin);
    const std::regex text("<text x=\"([^\"]*)\" y=\"([^\"]*)\" text-anchor=\"(\\w+)\" class=\"([^\"]*)\">([^<]*)<"),
        rect(
            "<rect x=\"([^\"]*)\" y=\"([^\"]*)\" width=\"([^\"]*)\" height=\"([^\"]*)\" class=\"(\\w+)\"(/>|>"
            "<title>([^<]*)</title>)");
    std::map<double, std::string> columns, rows;  // by x of the middle, by y of the base line
    const std::sregex_iterator end;
    for (std::sregex_iterator t(svg.begin(), svg.end(), text); t != end; ++t) {
      const double x = std::stod((*t)[1]), y = std::stod((*t)[2]);
      if ((*t)[3] == "middle" && (*t)[4] == "name") columns[x] = (*t)[5];
      if ((*t)[3] == "end" && (*t)[4] == "name") rows[y] = (*t)[5];
      if ((*t)[3] == "start" && (*t)[4] == "quiet") notes.push_back((*t)[5]);
    }
    for (const auto& [x, name] : columns) column_names.push_back(name);
    for (const auto& [y, name] : rows) row_names.push_back(name);
    for (std::sregex_iterator r(svg.begin(), svg.end(), rect); r != end; ++r) {
      const double left = std::stod((*r)[1]), top = std::stod((*r)[2]);
      const double right = left + std::stod((*r)[3]), bottom = top + std::stod((*r)[4]);
      const auto column = columns.lower_bound(left);
      const auto row = rows.lower_bound(top);
      if (column == columns.end() || column->first > right || row == rows.end() || row->first > bottom) {
        ADD_FAILURE() << "of no row or column: " << r->str();
        continue;
      }
      Cell& cell = cells[{row->second, column->second}];
      if ((*r)[5] == "own") {
        cell.is_framed = true;
        continue;
      }
      cell.css_class = (*r)[5];
      cell.tip = (*r)[7];
      for (std::sregex_iterator t(svg.begin(), svg.end(), text); t != end; ++t) {
        if (std::stod((*t)[1]) != column->first || std::stod((*t)[2]) != row->first) continue;
        cell.text = (*t)[5];
        cell.is_strong = (*t)[4].str().ends_with(" strong");
        EXPECT_THAT((*t)[4].str(), ::testing::StartsWith("on-" + cell.css_class));
      }
    }
  }

  const Cell& At(const std::string& row, const std::string& column) const { return cells.at({row, column}); }

  std::vector<std::string> column_names, row_names, notes;  // from left, from the top
  std::map<std::pair<std::string, std::string>, Cell> cells;
};

TEST(ReportPageTest, PerplexitiesStandUnderTheirDomainBesideTheirText) {
  const Plot plot(ReportPage(Figures()), "Perplexity of texts under domains");
  EXPECT_THAT(plot.column_names, ElementsAre("code", "law", "zh"));
  EXPECT_THAT(plot.row_names, ElementsAre("code", "law", "news"));
  // The colour's step falls with how many times the row's least it is: 1.1, 1.5, 2, 3, 5, 10.
  const std::vector<std::tuple<const char*, const char*, const char*, const char*>> expected = {
      {"code", "code", "8.50", "q6"},  {"code", "law", "17.00", "q3"}, {"code", "zh", "850.5", "q0"},
      {"law", "code", "24.00", "q3"},  {"law", "law", "12.00", "q6"},  {"law", "zh", "36.25", "q2"},
      {"news", "code", "250.0", "q5"}, {"news", "law", "200.0", "q6"}, {"news", "zh", "\u2013", "none"},
  };
  ASSERT_EQ(plot.cells.size(), expected.size());
  for (const auto& [row, column, text, css_class] : expected) {
    const Plot::Cell& cell = plot.At(row, column);
    EXPECT_EQ(cell.text, text) << row << column;
    EXPECT_EQ(cell.css_class, css_class) << row << column;
    EXPECT_EQ(cell.is_framed, std::string_view(row) == column) << row << column;
    EXPECT_EQ(cell.is_strong, cell.css_class == "q6") << row << column;
  }
  EXPECT_EQ(plot.At("law", "zh").tip, "text law under domain zh: 36.2500, 3.02 times the row&#39;s least");
  EXPECT_EQ(plot.At("news", "zh").tip, "not measured");
}

TEST(ReportPageTest, SharesStandUnderTheirExpertBesideTheirLayer) {
  const std::string page = ReportPage(Figures());
  const Plot code(page, "Route balance of code"), law(page, "Route balance of law");
  EXPECT_THAT(law.column_names, ElementsAre("0", "1", "2"));
  EXPECT_THAT(law.row_names, ElementsAre("layer 3", "layer 4"));
  EXPECT_THAT(law.notes, ElementsAre("least\u2013most", "10.0\u201370.0%", "30.0\u201336.0%"));
  // The colour's step grows with how many times an equal share it is: 0.5, 0.8, 0.95, 1.05, 1.25, 2.
  for (const auto& [plot, row, column, text, css_class] :
       std::vector<std::tuple<const Plot*, const char*, const char*, const char*, const char*>>{
           {&code, "layer 3", "0", "25.0%", "d1"},
           {&code, "layer 3", "1", "75.0%", "d5"},
           {&code, "layer 4", "0", "50.0%", "d3"},
           {&code, "layer 4", "1", "50.0%", "d3"},
           {&law, "layer 3", "0", "10.0%", "d0"},
           {&law, "layer 3", "1", "20.0%", "d1"},
           {&law, "layer 3", "2", "70.0%", "d6"},
           {&law, "layer 4", "0", "30.0%", "d2"},
           {&law, "layer 4", "1", "34.0%", "d3"},
           {&law, "layer 4", "2", "36.0%", "d4"}}) {
    EXPECT_EQ(plot->At(row, column).text, text) << row << column;
    EXPECT_EQ(plot->At(row, column).css_class, css_class) << row << column << text;
  }
  EXPECT_EQ(law.At("layer 3", "2").tip, "layer 3, expert 2: 70.00% of the visits");
  EXPECT_THAT(page, HasSubstr("<h3>code <span class=\"quiet\">by its text</span>"));
  EXPECT_THAT(page, HasSubstr("<h3>law <span class=\"quiet\">by token types</span>"));
}

TEST(ReportPageTest, LegendsNameTheColoursThatPlotsUse) {
  const std::regex key("class=\"(\\w\\d)\"/></svg> ([^<]*)<");
  const auto keys = [&](const std::string& legend) {
    std::vector<std::pair<std::string, std::string>> found;
    for (std::sregex_iterator k(legend.begin(), legend.end(), key), end; k != end; ++k) {
      found.emplace_back((*k)[1], (*k)[2]);
    }
    return found;
  };
  EXPECT_THAT(keys(MatrixLegend()), ElementsAre(Pair("q6", "below 1.1"), Pair("q5", "1.1 to 1.5"),
                                                Pair("q4", "1.5 to 2"), Pair("q3", "2 to 3"), Pair("q2", "3 to 5"),
                                                Pair("q1", "5 to 10"), Pair("q0", "10 and more")));
  EXPECT_THAT(keys(BalanceLegend()),
              ElementsAre(Pair("d0", "below 0.5"), Pair("d1", "0.5 to 0.8"), Pair("d2", "0.8 to 0.95"),
                          Pair("d3", "0.95 to 1.05"), Pair("d4", "1.05 to 1.25"), Pair("d5", "1.25 to 2"),
                          Pair("d6", "2 and more")));
}

TEST(ReportPageTest, TablesHaveEveryFigureInItsColumn) {
  const std::string page = ReportPage(Figures());
  EXPECT_THAT(
      TableRows(page),
      ElementsAre(
          // Texts: scored tokens, under the own domain, the best of the others, their ratio.
          ElementsAre("code", "1,234", "8.50", "17.00", "2.00"), ElementsAre("law", "77", "12.00", "24.00", "2.00"),
          ElementsAre("news", "5,678", "of no domain", "200.0", "\u2013"),
          // Parts: a bar (of the largest), bytes, share of all, parameters.
          ElementsAre("trunk", "[100.00% trunk]", "6,000,000", "60.0%", "3,000,003"),
          ElementsAre("code", "[50.00%]", "3,000,000", "30.0%", "1,000,001"),
          ElementsAre("law", "[15.00%]", "900,000", "9.0%", "500,005"),
          ElementsAre("zh", "[1.67%]", "100,000", "1.0%", "70,007"),
          ElementsAre("all", "", "10,000,000", "100.0%", "7,654,321"),
          // Experts: how many, bytes of one, bytes of routes.
          ElementsAre("code", "4", "1,000", "32,768"), ElementsAre("law", "6", "500 to 2,000", "32,769"),
          ElementsAre("zh", "2", "30", "32,770"),
          // Files: of which part, generation, bytes.
          ElementsAre("trunk-1.safetensors", "trunk", "0", "4,000,001"),
          ElementsAre("trunk-2.safetensors", "trunk", "0", "1,999,999"),
          ElementsAre("domains/code.g7.safetensors", "code", "7", "3,000,000"),
          ElementsAre("domains/law.safetensors", "law", "1", "900,000"),
          ElementsAre("domains/zh.g2.safetensors", "zh", "2", "100,000"),
          // Folds: width, a bar (of the worst), ratio, perplexity, KL, agreement, bytes, of the slice's.
          ElementsAre("code", "lsq, route channels", "2", "[50.00%]", "1.250", "12.50", "0.2500", "87.5%", "4,000,000",
                      "44.4%"),
          ElementsAre("law", "average", "1", "[100.00%]", "2.500", "25.00", "0.5000", "60.0%", "3,000,000", "\u2013"),
          ElementsAre("zh", "weighted", "4", "not measured", "\u2013", "\u2013", "\u2013", "\u2013", "5", "50.0%"),
          // Lineage, the latest first.
          ElementsAre("2024-03-03", "drop", "fr", "plum", "fedcba987654", "1.2"),
          ElementsAre("2024-02-02", "graft", "zh", "donor@cn", "0123456789ab", "1.1"),
          ElementsAre("2024-01-01", "upcycle", "code, law", "parent", "", "1.0"),
          // Generations: in use, file, bytes.
          ElementsAre("code", "3", "no", "code.g3", "2,900,000"),
          ElementsAre("code", "7", "yes", "code.g7", "3,000,000")));
}

TEST(ReportPageTest, TheFirstLinesSayWhatTheModelIs) {
  const std::string text = TextOf(ReportPage(Figures()));
  for (const char* said :
       {"plum\nscion, 7,654,321 parameters in 10.00 MB (BF16); 5 layers, of which 2 sparse, 1 expert "
        "per token; hidden size 96, vocabulary 4,096, context 1,024.",
        "2 domains, by default law.", "measured by hand.", "Lock 5ca1ab1e",
        "Made by moe-extract report, version 1.2.3, 2024-04-04."}) {
    EXPECT_THAT(text, HasSubstr(said));
  }
}

constexpr char kHostile[] = "<u id=\"'\">&amp;";

// Appends it to every string in there.
void MakeHostile(Json& json) {
  if (json.is_string()) json = json.get<std::string>() + kHostile;
  if (json.is_structured()) {
    for (Json& value : json) MakeHostile(value);
  }
}

TEST(ReportPageTest, EveryStringIsEscaped) {
  const std::string hostile = kHostile;
  ReportFigures f = Figures();
  MakeHostile(f.model);
  MakeHostile(f.generations);
  // Twelve digits of a hash are shown.
  for (Json& entry : f.model["lock"]["lineage"]) entry["source_lock_sha256"] = hostile;
  for (std::string* text : {&f.name, &f.version, &f.time, &f.matrix->source}) *text += hostile;
  for (std::string& domain : f.matrix->domains) domain = hostile + domain;  // names in plots are cut
  for (DomainMatrix::Row& row : f.matrix->rows) row.text = hostile + row.text;
  for (ExpertSizes& e : f.experts) e.domain += hostile;
  for (RouteBalance& balance : f.balance) balance.domain += hostile;
  for (FoldReport& fold : f.folds) fold.domain += hostile, fold.method += hostile;
  const std::string page = ReportPage(f);
  for (const char* raw : {"<u", "id=\"", "\"'\""}) EXPECT_EQ(page.find(raw), std::string::npos) << raw;
  EXPECT_THAT(page, HasSubstr("<h1>plum&lt;u id=&quot;&#39;&quot;&gt;&amp;amp;</h1>"));
}

TEST(ReportPageTest, ThePagesFiguresAreThoseOfJson) {
  const Json json = ToJson(Figures());
  EXPECT_EQ(json["matrix"]["rows"][1], Json::parse(R"({"text": "law", "scored_tokens": 77,
                                                       "perplexity": {"code": 24.0, "law": 12.0, "zh": 36.25}})"));
  EXPECT_EQ(json["matrix"]["rows"][2]["perplexity"]["zh"], Json());
  EXPECT_EQ(json["experts"][1], Json::parse(R"({"domain": "law", "experts": 6, "smallest_bytes": 500,
                                                "largest_bytes": 2000, "route_bytes": 32769})"));
  EXPECT_EQ(json["balance"][1]["layers"][0], Json::parse(R"({"layer": 3, "shares": [0.1, 0.2, 0.7]})"));
  EXPECT_EQ(json["balance"][1]["by"], "token types");
  EXPECT_EQ(json["folds"][0]["held_out"]["perplexity_ratio"], 1.25);
  EXPECT_EQ(json["folds"][0]["model_bytes"], 9'000'000);
  EXPECT_EQ(json["folds"][2]["held_out"], Json());
  EXPECT_EQ(json["generations"], Figures().generations);
  EXPECT_EQ(json["model"], Figures().model);
}

}  // namespace
}  // namespace scion::test
