#include "extract/report_page.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "extract/html.h"
#include "extract/report_plots.h"
#include "extract/report_style.h"

namespace scion {
namespace {

constexpr size_t kMaxTableRows = 200, kMaxPanels = 32;

std::string Escaped(const Json& text) { return EscapeHtml(text.get<std::string>()); }
std::string MegaBytes(uint64_t bytes) { return absl::StrFormat("%.2f MB", static_cast<double>(bytes) * 1e-6); }
std::string Optional(const std::optional<double>& perplexity) {
  return perplexity.has_value() ? PerplexityText(*perplexity) : "\u2013";
}

// A heading of a column: "n" of numbers, "wide" of bars.
struct Column {
  const char* name;
  const char* css_class = "";
};

// Rows beyond kMaxTableRows are counted, not shown.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {
    out_ = "<div class=\"plot\"><table><thead><tr>";
    for (const Column& c : columns_) absl::StrAppend(&out_, "<th class=\"", c.css_class, "\">", c.name, "</th>");
    out_ += "</tr></thead><tbody>\n";
  }
  // cells: HTML.
  void Row(const std::vector<std::string>& cells) {
    if (++rows_ > kMaxTableRows) return;
    out_ += "<tr>";
    for (size_t i = 0; i < cells.size(); ++i) {
      absl::StrAppend(&out_, "<td class=\"", columns_[i].css_class, "\">", cells[i], "</td>");
    }
    out_ += "</tr>\n";
  }
  std::string Finish() && {
    out_ += "</tbody></table></div>\n";
    if (rows_ > kMaxTableRows) {
      absl::StrAppend(&out_, "<p class=\"quiet\">", rows_ - kMaxTableRows, " more are in --json.</p>\n");
    }
    return std::move(out_);
  }

 private:
  std::vector<Column> columns_;
  std::string out_;
  size_t rows_ = 0;
};

std::string Summary(const ReportFigures& figures) {
  const Json& m = figures.model;
  std::string out =
      absl::StrCat("<h1>", EscapeHtml(figures.name), "</h1>\n<p>", Escaped(m["model_type"]), ", ",
                   CountText(m["parameters"].get<uint64_t>()), " parameters in ", MegaBytes(m["bytes"].get<uint64_t>()),
                   " (", Escaped(m["dtype"]), "); ", m["num_hidden_layers"].get<size_t>(), " layers");
  if (!m["sparse_layers"].empty()) {
    absl::StrAppend(&out, ", of which ", m["sparse_layers"].size(), " sparse, ", m["num_experts_per_tok"].get<int>(),
                    m["num_experts_per_tok"] == 1 ? " expert" : " experts", " per token");
  }
  absl::StrAppend(&out, "; hidden size ", m["hidden_size"].get<int>(), ", vocabulary ",
                  CountText(m["vocab_size"].get<uint64_t>()), ", context ",
                  CountText(m["max_position_embeddings"].get<uint64_t>()), ".</p>\n");
  if (figures.is_gate_routed) {
    return out +
           "<p>A learned gate routes its tokens: it has no domains, so there is no share of domains or experts to "
           "show.</p>\n";
  }
  if (figures.balance.empty()) return out + "<p>A dense model: it has no domains and no experts.</p>\n";
  absl::StrAppend(&out, "<p>", figures.balance.size(), figures.balance.size() == 1 ? " domain" : " domains",
                  ", by default <strong>", Escaped(m["default_domain"]), "</strong>.</p>\n");
  return out;
}

std::string MatrixSection(const ReportFigures& figures) {
  std::string out = "<h2>What each domain makes of each text</h2>\n";
  if (!figures.matrix.has_value()) {
    return out + "<p>Not measured: no texts were given (--text).</p>\n";
  }
  const DomainMatrix& matrix = *figures.matrix;
  absl::StrAppend(
      &out, "<p><span class=\"label\">", matrix.is_measured ? "measured" : "read, not measured", "</span> ",
      matrix.is_measured ? "by " : "from ", EscapeHtml(matrix.source),
      ". Perplexity per token of texts (rows) when the domain of the column is asked; lower is better. Framed:"
      " the text's own domain. Bold: the row's least.</p>\n",
      MatrixPlot(matrix), MatrixLegend());
  if (matrix.rows.size() > kMaxPlotRows || matrix.domains.size() > kMaxPlotColumns) {
    absl::StrAppend(&out, "<p class=\"quiet\">The plot shows ", kMaxPlotRows, " texts and ", kMaxPlotColumns,
                    " domains at most; --json has all.</p>\n");
  }
  Table table({{"text"}, {"scored tokens", "n"}, {"own domain", "n"}, {"best other", "n"}, {"other / own", "n"}});
  for (const DomainMatrix::Row& row : matrix.rows) {
    const std::optional<double> own = OwnPerplexity(matrix, row), other = BestOtherPerplexity(matrix, row);
    table.Row({EscapeHtml(row.text), CountText(static_cast<uint64_t>(row.scored_tokens)),
               own.has_value() ? PerplexityText(*own) : "of no domain", Optional(other),
               own.has_value() && other.has_value() ? absl::StrFormat("%.2f", *other / *own) : "\u2013"});
  }
  return out + std::move(table).Finish();
}

std::string SizeSection(const ReportFigures& figures) {
  std::string out = "<h2>Sizes</h2>\n";
  uint64_t largest = 1;
  for (const Json& part : figures.model["parts"]) largest = std::max(largest, part["bytes"].get<uint64_t>());
  const uint64_t all = std::max<uint64_t>(1, figures.model["bytes"].get<uint64_t>());
  Table parts({{"part"}, {"", "wide"}, {"bytes on disk", "n"}, {"of all", "n"}, {"parameters", "n"}});
  for (const Json& part : figures.model["parts"]) {
    const uint64_t bytes = part["bytes"].get<uint64_t>();
    parts.Row({Escaped(part["name"]),
               Bar(static_cast<double>(bytes) / static_cast<double>(largest), part.contains("experts") ? "" : "trunk"),
               CountText(bytes), PercentText(static_cast<double>(bytes) / static_cast<double>(all)),
               CountText(part["parameters"].get<uint64_t>())});
  }
  parts.Row({"<strong>all</strong>", "", CountText(figures.model["bytes"].get<uint64_t>()), PercentText(1),
             CountText(figures.model["parameters"].get<uint64_t>())});
  out += std::move(parts).Finish();
  if (!figures.experts.empty()) {
    out += "<h3>Experts</h3>\n";
    Table experts({{"domain"}, {"experts in all sparse layers", "n"}, {"bytes of one", "n"}, {"bytes of routes", "n"}});
    for (const ExpertSizes& e : figures.experts) {
      experts.Row({EscapeHtml(e.domain), CountText(static_cast<uint64_t>(e.num_experts)),
                   e.smallest_bytes == e.largest_bytes
                       ? CountText(e.largest_bytes)
                       : absl::StrCat(CountText(e.smallest_bytes), " to ", CountText(e.largest_bytes)),
                   CountText(e.route_bytes)});
    }
    out += std::move(experts).Finish();
  }
  out += "<h3>Files</h3>\n";
  Table files({{"file"}, {"of"}, {"generation", "n"}, {"bytes", "n"}});
  for (const Json& part : figures.model["parts"]) {
    for (const Json& file : part["files"]) {
      files.Row({Escaped(file["path"]), Escaped(part["name"]), CountText(file["generation"].get<uint64_t>()),
                 CountText(file["bytes"].get<uint64_t>())});
    }
  }
  return out + std::move(files).Finish();
}

std::string BalanceSection(const ReportFigures& figures) {
  if (figures.balance.empty()) return "";
  std::string out =
      "<h2>Route balance</h2>\n<p>The share of a domain's tokens that each expert sees, per sparse layer. Tokens count "
      "as "
      "often as the domain's text has them, where one was given (--text); else every token of the vocabulary counts "
      "once."
      "</p>\n" +
      BalanceLegend() + "<div class=\"panels\">\n";
  for (size_t i = 0; i < std::min(figures.balance.size(), kMaxPanels); ++i) {
    const RouteBalance& balance = figures.balance[i];
    const size_t experts = balance.layers.empty() ? 0 : balance.layers[0].shares.size();
    absl::StrAppend(&out, "<div><h3>", EscapeHtml(balance.domain), " <span class=\"quiet\">by ",
                    balance.by_text ? "its text" : "token types", "</span></h3>\n", BalancePlot(balance));
    if (balance.layers.size() > kMaxPlotRows || experts > kMaxPlotColumns) {
      absl::StrAppend(&out, "<p class=\"quiet\">", balance.layers.size(), " layers of ", experts,
                      " experts; the plot shows ", kMaxPlotRows, " of ", kMaxPlotColumns, " at most.</p>\n");
    }
    out += "</div>\n";
  }
  out += "</div>\n";
  if (figures.balance.size() > kMaxPanels) {
    absl::StrAppend(&out, "<p class=\"quiet\">", figures.balance.size() - kMaxPanels,
                    " more domains are in --json.</p>\n");
  }
  return out;
}

std::string LineageSection(const ReportFigures& figures) {
  std::string out = "<h2>Where it came from</h2>\n";
  const Json& lock = figures.model["lock"];
  if (lock.is_null()) return out + "<p>The model has no lock, and so no lineage.</p>\n";
  absl::StrAppend(&out, "<p>Lock <code>", Escaped(lock["lock_sha256"]), "</code></p>\n");
  Table lineage({{"time", "fixed"}, {"verb"}, {"domains"}, {"of"}, {"its lock"}, {"version"}});
  const Json& entries = lock["lineage"];
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    lineage.Row({Escaped((*entry)["time"]), Escaped((*entry)["verb"]),
                 EscapeHtml(absl::StrJoin((*entry)["domains"].get<std::vector<std::string>>(), ", ")),
                 Escaped((*entry)["source"]),
                 EscapeHtml((*entry)["source_lock_sha256"].get<std::string>().substr(0, 12)),
                 Escaped((*entry)["version"])});
  }
  absl::StrAppend(&out, "<p class=\"quiet\">The latest first.</p>\n", std::move(lineage).Finish());
  if (figures.generations.empty()) return out;
  out += "<h3>Generations on the disk</h3>\n";
  Table generations({{"domain"}, {"generation", "n"}, {"in use"}, {"file"}, {"bytes", "n"}});
  for (const Json& domain : figures.generations) {
    for (const Json& g : domain["generations"]) {
      generations.Row({Escaped(domain["name"]), CountText(g["generation"].get<uint64_t>()),
                       g["in_use"].get<bool>() ? "yes" : "no", Escaped(g["file"]),
                       CountText(g["bytes"].get<uint64_t>())});
    }
  }
  return out + std::move(generations).Finish();
}

std::string FoldSection(const ReportFigures& figures) {
  if (figures.folds.empty()) return "";
  std::string out =
      "<h2>Folds</h2>\n<p><span class=\"label\">read, not measured</span> from what densify said of folds of this "
      "model's "
      "domains: perplexity on held-out text, over that of the exact slice (1: as good).</p>\n";
  double worst = 1;
  for (const FoldReport& fold : figures.folds) {
    if (fold.comparison.has_value()) worst = std::max(worst, fold.comparison->ratio());
  }
  Table table({{"domain"},
               {"method"},
               {"width", "n"},
               {"", "wide"},
               {"perplexity / slice's", "n"},
               {"perplexity", "n"},
               {"KL, nats", "n"},
               {"top-1 the same", "n"},
               {"bytes", "n"},
               {"of the slice", "n"}});
  for (const FoldReport& fold : figures.folds) {
    std::vector<std::string> row = {EscapeHtml(fold.domain),
                                    EscapeHtml(fold.method) + (fold.has_channels ? ", route channels" : ""),
                                    absl::StrCat(fold.width)};
    if (fold.comparison.has_value()) {
      const TextComparison& c = *fold.comparison;
      row.insert(row.end(),
                 {Bar(c.ratio() / worst, ""), absl::StrFormat("%.3f", c.ratio()), PerplexityText(c.perplexity),
                  absl::StrFormat("%.4f", c.kl_divergence), PercentText(c.top1_agreement)});
    } else {
      row.insert(row.end(), {"not measured", "\u2013", "\u2013", "\u2013", "\u2013"});
    }
    row.push_back(CountText(fold.bytes));
    row.push_back(fold.model_bytes == 0
                      ? "\u2013"
                      : PercentText(static_cast<double>(fold.bytes) / static_cast<double>(fold.model_bytes)));
    table.Row(row);
  }
  return out + std::move(table).Finish();
}

}  // namespace

std::string ReportPage(const ReportFigures& figures) {
  const std::string title = EscapeHtml(figures.name);
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<title>",
      title, "</title>\n<style>", ToAbsl(kReportStyle), "</style>\n</head>\n<body>\n", Summary(figures),
      MatrixSection(figures), SizeSection(figures), BalanceSection(figures), FoldSection(figures),
      LineageSection(figures), "<footer>Made by moe-extract report, version ", EscapeHtml(figures.version), ", ",
      EscapeHtml(figures.time), ".</footer>\n</body>\n</html>\n");
}

}  // namespace scion
