// Unicode's normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace scion {

// Appends the NFC of well-formed UTF-8. Sequences of more than 1,024 characters without a place where composition must
// stop (longer than any language's; Unicode's Stream-Safe format stops at 30) are normalised in pieces of that length,
// because sorting combining marks takes quadratic time.
void AppendNfc(std::string_view utf8, std::string& out);

}  // namespace scion
