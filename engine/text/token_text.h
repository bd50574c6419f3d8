// The step that Tokenizer::Decode and IncrementalDetokenizer share.
#pragma once

#include <cstdint>
#include <string>

namespace scion {

class Tokenizer;

// Appends the bytes of one token, unless it is special and `skip_special`. drop_space: whether a space at its beginning
// is one that encoding adds; set anew for the next token.
void AppendTokenText(const Tokenizer& tokenizer, int32_t id, bool skip_special, bool& drop_space, std::string& out);

}  // namespace scion
