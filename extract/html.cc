#include "extract/html.h"

#include "engine/text/utf8.h"

namespace scion {
namespace {

bool IsControl(char32_t c) { return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029; }

// Marks, embeddings, overrides and isolates of the Unicode Bidirectional Algorithm (UAX #9).
bool TurnsDirection(char32_t c) {
  return c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

std::string EscapeHtml(std::string_view text, size_t max_characters) {
  std::string out;
  for (size_t count = 0; !text.empty(); ++count) {
    if (count == max_characters) return out + "\u2026";
    const Utf8Unit unit = FirstUtf8Unit(text);
    const std::string_view character = text.substr(0, unit.length);
    text.remove_prefix(unit.length);
    const char32_t code = unit.kind == Utf8Kind::kCharacter ? DecodeCharacter(character) : U'\uFFFD';
    switch (code) {
      case U'<':
        out += "&lt;";
        break;
      case U'>':
        out += "&gt;";
        break;
      case U'&':
        out += "&amp;";
        break;
      case U'"':
        out += "&quot;";
        break;
      case U'\'':
        out += "&#39;";
        break;
      default:
        if (code == U'\uFFFD' || IsControl(code) || TurnsDirection(code)) {
          out += kReplacementCharacter;
        } else {
          out += character;
        }
    }
  }
  return out;
}

}  // namespace scion
