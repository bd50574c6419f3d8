// The page of a report: HTML with its styles and plots (SVG) in it. It needs nothing else, runs no script, is light or
// dark as the reader's system is, and fits a telephone. Whatever comes from outside is escaped. What would grow with
// the model is cut, and the page says so: the figures' JSON has all.
#pragma once

#include <string>

#include "extract/report.h"

namespace scion {

std::string ReportPage(const ReportFigures& figures);

}  // namespace scion
