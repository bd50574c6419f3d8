#include "engine/text/token_text.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"

namespace scion {

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special, TextPart part)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      drop_space_(part == TextPart::kBeginning && tokenizer.SpacePrefixAfter(std::nullopt)) {}

void IncrementalDetokenizer::Push(int32_t id, std::string& out) {
  AppendTokenText(tokenizer_, id, skip_special_, drop_space_, pending_);
  pending_.erase(0, AppendReplacing(pending_, out));
}

void IncrementalDetokenizer::Finish(std::string& out) {
  if (!pending_.empty()) out.append(kReplacementCharacter);  // one unfinished character is one maximal subpart
  pending_.clear();
}

}  // namespace scion
