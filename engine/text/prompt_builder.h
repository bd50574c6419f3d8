// Puts a chat prompt together: markers become special tokens, everything else is ordinary text, whatever it reads like.
//
// Text between two special tokens is encoded in one piece, as it would be if the whole prompt were one string: a token
// may reach from the template's text into a message's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace scion {

class PromptBuilder {
 public:
  explicit PromptBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Text(std::string_view text) { text_.append(text); }
  // The special token of this text; ordinary text if the tokenizer has no such token.
  void Marker(std::string_view text);
  // A token by its id; nothing if the tokenizer has none.
  void Token(std::optional<int32_t> id);
  // The whole prompt; what a tokenizer adds to a text of its own (BOS) is left to the template.
  std::vector<int32_t> Take();

 private:
  void EncodeText();

  const Tokenizer& tokenizer_;
  std::string text_;
  std::vector<int32_t> ids_;
};

}  // namespace scion
