#include "extract/report_plots.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "extract/svg.h"

namespace scion {
namespace {

constexpr double kCharacter = 7.3, kCellHeight = 32, kGap = 2, kHeader = 24;
constexpr size_t kMaxName = 18;

// Both scales are steps of about the same ratio.
constexpr std::array<double, 6> kTimesTheLeast = {1.1, 1.5, 2, 3, 5, 10};
constexpr std::array<double, 6> kTimesEqual = {0.5, 0.8, 0.95, 1.05, 1.25, 2};

int StepOf(std::span<const double> bounds, double value) {
  return static_cast<int>(std::ranges::upper_bound(bounds, value) - bounds.begin());
}

// In characters, of names that are cut.
double Widest(const std::vector<std::string>& names) {
  size_t widest = 0;
  for (const std::string& name : names) widest = std::max(widest, std::min(name.size(), kMaxName));
  return static_cast<double>(widest);
}

double CellX(double left, double cell_width, size_t column) { return left + static_cast<double>(column) * cell_width; }
double CellY(size_t row) { return kHeader + static_cast<double>(row) * kCellHeight; }
double Baseline(size_t row) { return CellY(row) + kCellHeight / 2 + 4; }

void DrawCell(Svg& svg, double x, size_t row, double width, const std::string& css_class, const std::string& text,
              bool is_strong, const std::string& tip) {
  svg.Rect(x, CellY(row), width - kGap, kCellHeight - kGap, css_class, tip);
  if (!text.empty()) {
    svg.Text(x + (width - kGap) / 2, Baseline(row), "middle",
             absl::StrCat("on-", css_class, is_strong ? " strong" : ""), text);
  }
}

std::string Legend(char scale, std::span<const double> bounds, const char* what) {
  std::string out = absl::StrCat("<p class=\"legend\">", what);
  for (size_t i = 0; i <= bounds.size(); ++i) {
    // The strongest of the first scale is the least.
    const int step = static_cast<int>(scale == 'q' ? bounds.size() - i : i);
    const std::string label = i == 0               ? absl::StrFormat("below %g", bounds[0])
                              : i == bounds.size() ? absl::StrFormat("%g and more", bounds.back())
                                                   : absl::StrFormat("%g to %g", bounds[i - 1], bounds[i]);
    absl::StrAppend(&out,
                    " <span class=\"key\"><svg width=\"12\" height=\"12\" aria-hidden=\"true\"><rect width=\"12\" ",
                    "height=\"12\" class=\"", ScaleClass(scale, step), "\"/></svg> ", label, "</span>");
  }
  return out + "</p>\n";
}

}  // namespace

std::string CountText(uint64_t count) {
  const std::string digits = std::to_string(count);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out;
}

std::string PerplexityText(double perplexity) {
  if (perplexity >= 1e5) return absl::StrFormat("%.1e", perplexity);
  return absl::StrFormat("%.*f", perplexity < 100 ? 2 : 1, perplexity);
}

std::string PercentText(double share) { return absl::StrFormat("%.1f%%", 100 * share); }

std::string MatrixPlot(const DomainMatrix& matrix) {
  const size_t rows = std::min(matrix.rows.size(), kMaxPlotRows);
  const size_t columns = std::min(matrix.domains.size(), kMaxPlotColumns);
  std::vector<std::string> texts;
  for (const DomainMatrix::Row& row : matrix.rows) texts.push_back(row.text);
  const double left = std::max(44.0, Widest(texts) * kCharacter + 10);
  const double cell = std::max(62.0, Widest(matrix.domains) * kCharacter + 10);
  Svg svg(CellX(left, cell, columns), CellY(rows), "Perplexity of texts under domains",
          absl::StrCat("A heat map: a row for each of ", matrix.rows.size(), " texts, a column for each of ",
                       matrix.domains.size(), " domains; each cell holds a perplexity, lower is better."));
  for (size_t d = 0; d < columns; ++d) {
    svg.Text(CellX(left, cell, d) + (cell - kGap) / 2, kHeader - 8, "middle", "name", matrix.domains[d], kMaxName);
  }
  for (size_t r = 0; r < rows; ++r) {
    const DomainMatrix::Row& row = matrix.rows[r];
    svg.Text(left - 8, Baseline(r), "end", "name", row.text, kMaxName);
    double least = INFINITY;
    for (const auto& perplexity : row.perplexity) least = std::min(least, perplexity.value_or(INFINITY));
    for (size_t d = 0; d < columns; ++d) {
      const double x = CellX(left, cell, d);
      if (!row.perplexity[d].has_value()) {
        DrawCell(svg, x, r, cell, "none", "\u2013", false, "not measured");
        continue;
      }
      const double times = *row.perplexity[d] / least;
      const std::string css = ScaleClass('q', 6 - StepOf(kTimesTheLeast, times));
      DrawCell(svg, x, r, cell, css, PerplexityText(*row.perplexity[d]), times == 1,
               absl::StrFormat("text %s under domain %s: %.4f, %.2f times the row's least", row.text, matrix.domains[d],
                               *row.perplexity[d], times));
      if (matrix.domains[d] == row.text) svg.Rect(x + 1, CellY(r) + 1, cell - kGap - 2, kCellHeight - kGap - 2, "own");
    }
  }
  return std::move(svg).Finish();
}

std::string MatrixLegend() { return Legend('q', kTimesTheLeast, "Times the row's least:"); }

std::string BalancePlot(const RouteBalance& balance) {
  const size_t rows = std::min(balance.layers.size(), kMaxPlotRows);
  const size_t experts = balance.layers.empty() ? 0 : balance.layers[0].shares.size();
  const size_t columns = std::min(experts, kMaxPlotColumns);
  constexpr size_t kMaxColumnsWithText = 16;
  const bool has_text = experts <= kMaxColumnsWithText;
  const double left = 62, cell = has_text ? 46 : 14, right = 80;
  Svg svg(CellX(left, cell, columns) + right, CellY(rows), absl::StrCat("Route balance of ", balance.domain),
          absl::StrCat("A heat map: a row for each of ", balance.layers.size(), " sparse layers, a column for each of ",
                       experts, " experts; each cell holds the expert's share of the layer's visits."));
  for (size_t e = 0; e < columns; ++e) {
    if (has_text || e % 8 == 0) {
      svg.Text(CellX(left, cell, e) + (cell - kGap) / 2, kHeader - 8, "middle", "name", absl::StrCat(e));
    }
  }
  svg.Text(left - 8, kHeader - 8, "end", "quiet", "expert");
  svg.Text(CellX(left, cell, columns) + 6, kHeader - 8, "start", "quiet", "least\u2013most");
  for (size_t r = 0; r < rows; ++r) {
    const RouteBalance::Layer& layer = balance.layers[r];
    svg.Text(left - 8, Baseline(r), "end", "name", absl::StrCat("layer ", layer.layer));
    const auto [least, most] = std::ranges::minmax(layer.shares);
    for (size_t e = 0; e < columns; ++e) {
      const double share = layer.shares[e];
      const std::string css = ScaleClass('d', StepOf(kTimesEqual, share * static_cast<double>(experts)));
      DrawCell(svg, CellX(left, cell, e), r, cell, css, has_text ? PercentText(share) : "", false,
               absl::StrFormat("layer %d, expert %d: %.2f%% of the visits", layer.layer, e, 100 * share));
    }
    svg.Text(CellX(left, cell, columns) + 6, Baseline(r), "start", "quiet",
             absl::StrFormat("%.1f\u2013%s", 100 * least, PercentText(most)));
  }
  return std::move(svg).Finish();
}

std::string BalanceLegend() { return Legend('d', kTimesEqual, "Times an equal share:"); }

std::string Bar(double share, const char* css_class) {
  return absl::StrFormat(
      "<svg class=\"bar\" width=\"100%%\" height=\"12\" aria-hidden=\"true\"><rect width=\"%.2f%%\" height=\"12\" "
      "class=\"%s\"/></svg>",
      100 * std::clamp(share, 0.0, 1.0), css_class);
}

}  // namespace scion
