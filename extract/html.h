// Text from outside as HTML.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace scion {

// Text that stands between tags or in a quoted attribute, in HTML and in SVG: <, >, &, " and ' as references; what is
// no UTF-8, control characters and marks that turn the direction of what follows as U+FFFD; cut after max_characters,
// with an ellipsis.
std::string EscapeHtml(std::string_view text, size_t max_characters = 200);

}  // namespace scion
