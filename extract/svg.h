// A small drawing for a page: rectangles, lines and text in SVG. Colours come from the page's style sheet, by class.
#pragma once

#include <string>
#include <string_view>

namespace scion {

// A colour of a scale of seven, by number: "q0" .. "q6" from the page's to the strongest, "d0" .. "d6" from too little
// through even ("d3") to too much.
std::string ScaleClass(char scale, int step);

class Svg {
 public:
  // In pixels of the page. title and description are for who can't see it; they and all text are escaped here.
  Svg(double width, double height, std::string_view title, std::string_view description);

  // tip: shown when pointed at; empty for none.
  void Rect(double x, double y, double width, double height, std::string_view css_class, std::string_view tip = "");
  void Line(double x1, double y1, double x2, double y2, std::string_view css_class);
  // y: of the baseline. anchor: "start", "middle" or "end". Longer texts than max_characters are cut, and whole in the
  // tip.
  void Text(double x, double y, std::string_view anchor, std::string_view css_class, std::string_view text,
            size_t max_characters = 200);

  // The element, in a box that scrolls sideways where the page is narrower.
  std::string Finish() &&;

 private:
  std::string out_;
};

}  // namespace scion
