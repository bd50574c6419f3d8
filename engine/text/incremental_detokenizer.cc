#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"

namespace scion {

void IncrementalDetokenizer::Push(int32_t id, std::string& out) {
  if (skip_special_ && tokenizer_.IsSpecial(id)) return;
  pending_.append(tokenizer_.TokenBytes(id));
  pending_.erase(0, AppendReplacing(pending_, out));
}

void IncrementalDetokenizer::Finish(std::string& out) {
  if (!pending_.empty()) out.append(kReplacementCharacter);  // one unfinished character is one maximal subpart
  pending_.clear();
}

}  // namespace scion
