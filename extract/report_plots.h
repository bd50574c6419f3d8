// The plots of a report, as HTML.
#pragma once

#include <cstdint>
#include <string>

#include "extract/domain_matrix.h"
#include "extract/route_balance.h"

namespace scion {

// Thousands with commas.
std::string CountText(uint64_t count);
// Four digits or so, for people: "11.41", "592.1", "1.2e+06".
std::string PerplexityText(double perplexity);
std::string PercentText(double share);

// A heat map of texts (rows) x domains: perplexity in every cell, coloured by how many times it is the row's least, on
// a logarithmic scale; the cell of a text's own domain is framed.
std::string MatrixPlot(const DomainMatrix& matrix);
// Which perplexity is how many times the row's least: the colours in order.
std::string MatrixLegend();

// Sparse layers (rows) x experts: the share of visits in every cell, coloured by its ratio to an equal share.
std::string BalancePlot(const RouteBalance& balance);
std::string BalanceLegend();

// A bar that fills `share` (in [0, 1]) of its cell in a table.
std::string Bar(double share, const char* css_class);

// What a plot shows at most.
inline constexpr size_t kMaxPlotRows = 64, kMaxPlotColumns = 64;

}  // namespace scion
