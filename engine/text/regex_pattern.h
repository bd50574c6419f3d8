// The dialect of a tokenizer.json's patterns (Oniguruma), written for PCRE2.
//
// Accepted is what pre-tokenizers are made of and what means the same in both: alternatives, groups (`(`, `(?:`,
// `(?i:`, `(?>`, look-ahead, look-behind), quantifiers, classes, `\s \S \d \D \r \n \t \p{L} \P{Lu}` and escaped
// punctuation. Anything else (anchors, back references, recursion, nested classes) is Unimplemented, by name.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace scion {

inline constexpr size_t kMaxPatternBytes = 8192;
// No repetition count above this: one item then passes over a bounded stretch of text between two step counts.
inline constexpr int kMaxRepeat = 255;

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern);

// A pattern that matches `literal` as it is.
std::string EscapePattern(std::string_view literal);

}  // namespace scion
