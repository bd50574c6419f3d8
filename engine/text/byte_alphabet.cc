#include "engine/text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "engine/text/utf8.h"

namespace scion {
namespace {

constexpr int kAlphabetEnd = 0x144;
constexpr int16_t kNoByte = -1;

constexpr std::array<int16_t, kAlphabetEnd> MakeByteOfCharacter() {
  std::array<int16_t, kAlphabetEnd> table{};
  table.fill(kNoByte);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    table[printable ? byte : next++] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr std::array<int16_t, kAlphabetEnd> kByteOfCharacter = MakeByteOfCharacter();

}  // namespace

std::optional<std::string> BytesOfAlphabetText(std::string_view token) {
  std::string bytes;
  for (size_t position = 0; position < token.size();) {
    const Utf8Unit unit = FirstUtf8Unit(token.substr(position));
    if (unit.kind != Utf8Kind::kCharacter) return std::nullopt;
    const char32_t character = DecodeCharacter(token.substr(position, unit.length));
    if (character >= kAlphabetEnd || kByteOfCharacter[character] == kNoByte) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOfCharacter[character]));
    position += unit.length;
  }
  return bytes;
}

}  // namespace scion
