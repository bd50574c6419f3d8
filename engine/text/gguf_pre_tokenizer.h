// What a name in `tokenizer.ggml.pre` stands for: the normalizer and pre-tokenizer of that model's own tokenizer.json,
// which a GGUF file does not carry.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/pre_tokenizer.h"

namespace scion {

struct GgufPreTokenizer {
  std::vector<PreTokenizeStep> steps;
  bool nfc = false;
  bool ignore_merges = false;  // a pre-token that is a token is taken whole
  bool add_bos = false;        // where the file does not say
};

// Unimplemented for a name that is not known, naming it. The empty name is "default".
absl::StatusOr<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name);

// The other way: a name that stands for these very steps, of several the one that agrees in `nfc` and `ignore_merges`
// most. Nothing if there is none.
std::optional<std::string_view> FindGgufPreTokenizerName(const std::vector<PreTokenizeStep>& steps, bool nfc,
                                                         bool ignore_merges);

}  // namespace scion
