#include "engine/text/prompt_builder.h"

#include <utility>

namespace scion {

void PromptBuilder::Marker(std::string_view text) {
  const std::optional<int32_t> id = tokenizer_.FindSpecial(text);
  if (id) {
    Token(id);
  } else {
    Text(text);
  }
}

void PromptBuilder::Token(std::optional<int32_t> id) {
  if (!id) return;
  EncodeText();
  ids_.push_back(*id);
}

std::vector<int32_t> PromptBuilder::Take() {
  EncodeText();
  return std::exchange(ids_, {});
}

void PromptBuilder::EncodeText() {
  tokenizer_.Encode(text_, {.parse_special = false, .add_special = false}, ids_);
  text_.clear();
}

}  // namespace scion
