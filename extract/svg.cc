#include "extract/svg.h"

#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "extract/html.h"

namespace scion {

std::string ScaleClass(char scale, int step) { return {scale, static_cast<char>('0' + step)}; }

Svg::Svg(double width, double height, std::string_view title, std::string_view description) {
  out_ = absl::StrFormat("<div class=\"plot\"><svg role=\"group\" width=\"%g\" height=\"%g\" viewBox=\"0 0 %g %g\">",
                         width, height, width, height);
  absl::StrAppend(&out_, "<title>", EscapeHtml(title), "</title><desc>", EscapeHtml(description, 1000), "</desc>\n");
}

void Svg::Rect(double x, double y, double width, double height, std::string_view css_class, std::string_view tip) {
  absl::StrAppendFormat(&out_, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" class=\"%s\"", x, y, width, height,
                        std::string(css_class));
  absl::StrAppend(&out_, tip.empty() ? "/>" : "><title>" + EscapeHtml(tip) + "</title></rect>", "\n");
}

void Svg::Line(double x1, double y1, double x2, double y2, std::string_view css_class) {
  absl::StrAppendFormat(&out_, "<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\" class=\"%s\"/>\n", x1, y1, x2, y2,
                        std::string(css_class));
}

void Svg::Text(double x, double y, std::string_view anchor, std::string_view css_class, std::string_view text,
               size_t max_characters) {
  const std::string whole = EscapeHtml(text), shown = EscapeHtml(text, max_characters);
  absl::StrAppendFormat(&out_, "<text x=\"%g\" y=\"%g\" text-anchor=\"%s\" class=\"%s\">%s%s</text>\n", x, y,
                        std::string(anchor), std::string(css_class), shown,
                        shown == whole ? "" : "<title>" + whole + "</title>");
}

std::string Svg::Finish() && { return std::move(out_) + "</svg></div>\n"; }

}  // namespace scion
