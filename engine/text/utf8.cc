#include "engine/text/utf8.h"

namespace scion {
namespace {

uint8_t At(std::string_view bytes, size_t i) { return static_cast<uint8_t>(bytes[i]); }

}  // namespace

Utf8Unit FirstUtf8Unit(std::string_view bytes) {
  const uint8_t lead = At(bytes, 0);
  if (lead < 0x80) return {Utf8Kind::kCharacter, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Kind::kIllFormed, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range keeps out overlong forms, surrogates and what lies beyond U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i == bytes.size()) return {Utf8Kind::kUnfinished, i};
    if (At(bytes, i) < low || At(bytes, i) > high) return {Utf8Kind::kIllFormed, i};
  }
  return {Utf8Kind::kCharacter, length};
}

char32_t DecodeCharacter(std::string_view character) {
  const char32_t lead = At(character, 0);
  switch (character.size()) {
    case 1:
      return lead;
    case 2:
      return (lead & 0x1F) << 6 | (At(character, 1) & 0x3F);
    case 3:
      return (lead & 0x0F) << 12 | (At(character, 1) & 0x3F) << 6 | (At(character, 2) & 0x3F);
    default:
      return (lead & 0x07) << 18 | (At(character, 1) & 0x3F) << 12 | (At(character, 2) & 0x3F) << 6 |
             (At(character, 3) & 0x3F);
  }
}

size_t ValidUtf8Prefix(std::string_view bytes) {
  size_t position = 0;
  while (position < bytes.size()) {
    const Utf8Unit unit = FirstUtf8Unit(bytes.substr(position));
    if (unit.kind != Utf8Kind::kCharacter) break;
    position += unit.length;
  }
  return position;
}

size_t AppendReplacing(std::string_view bytes, std::string& out) {
  size_t position = 0;
  while (position < bytes.size()) {
    const size_t valid = ValidUtf8Prefix(bytes.substr(position));
    out.append(bytes.substr(position, valid));
    position += valid;
    if (position == bytes.size()) break;
    const Utf8Unit unit = FirstUtf8Unit(bytes.substr(position));
    if (unit.kind == Utf8Kind::kUnfinished) break;
    out.append(kReplacementCharacter);
    position += unit.length;
  }
  return position;
}

}  // namespace scion
