// GPT-2's byte alphabet: every byte is written as one printable character, so that a vocabulary of byte strings fits
// into JSON. Printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace scion {

// The bytes that a vocabulary entry stands for; nothing if it holds a character outside the alphabet. `token` is UTF-8.
std::optional<std::string> BytesOfAlphabetText(std::string_view token);

}  // namespace scion
