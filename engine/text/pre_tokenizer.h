// Cuts text into pre-tokens, which BPE never joins: Split, Digits and ByteLevel of Hugging Face's `tokenizers`.
//
// The steps run in order, each on every piece that the one before left. Immutable and thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/regex.h"

namespace scion {

// One step of a pre-tokenizer, as the file says it.
struct PreTokenizeStep {
  enum class Kind : uint8_t {
    kSplitRegex,    // matches and what lies between them become pieces of their own
    kSplitLiteral,  // likewise, of a string
    kPrefixSpace,   // a piece that doesn't begin with a space gets one
  };
  Kind kind;
  std::string pattern;
};

class PreTokenizer {
 public:
  static absl::StatusOr<PreTokenizer> Create(const std::vector<PreTokenizeStep>& steps);

  struct Pieces {
    std::string text;
    std::vector<size_t> ends;  // ascending, the last is text.size()
    std::vector<size_t> next_ends;
    std::string next_text;
  };

  // The regex steps that an input of `text_bytes` may take: 100 per byte and split, and a million. Beyond them, which
  // takes a pattern that backtracks without end, what is left of the text is not cut any more.
  int64_t MaxRegexSteps(size_t text_bytes) const;

  // Cuts pieces.text, which is well-formed UTF-8.
  void Run(Regex::Scratch& scratch, Pieces& pieces) const;

 private:
  struct Step {
    PreTokenizeStep::Kind kind;
    Regex regex;
  };
  std::vector<Step> steps_;
};

}  // namespace scion
