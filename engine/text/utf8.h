// Walking over bytes that ought to be UTF-8 (The Unicode Standard, table 3-7 and section 3.9, "maximal subparts").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace scion {

enum class Utf8Kind : uint8_t {
  kCharacter,
  kIllFormed,   // a maximal subpart that no continuation can mend: one U+FFFD
  kUnfinished,  // the bytes end inside what may still become a character
};

struct Utf8Unit {
  Utf8Kind kind;
  size_t length;  // in bytes, at least 1
};

// The unit that `bytes` begins with; `bytes` is not empty.
Utf8Unit FirstUtf8Unit(std::string_view bytes);

// The code point of a character that FirstUtf8Unit has found.
char32_t DecodeCharacter(std::string_view character);

// Length of the longest prefix that is well-formed.
size_t ValidUtf8Prefix(std::string_view bytes);

// Appends `bytes` with U+FFFD in place of what is ill-formed. Returns how many bytes were consumed: all, but for an
// unfinished character at the end (at most 3 bytes).
size_t AppendReplacing(std::string_view bytes, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace scion
