// The texts that a fold is fitted to and measured on, as windows of tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_spec.h"
#include "engine/text/tokenizer.h"

namespace scion {

using TokenWindow = std::vector<int32_t>;  // of two tokens at least

struct TextLimits {
  int window_tokens = 256;
  int64_t max_tokens = 0;  // what is beyond is not read
  int vocab_size = 0;      // of the model
};

// Of texts that a model is measured on: windows of 256 tokens at most, and a million tokens.
TextLimits EvaluationLimits(const ModelSpec& spec);

// A file of plain text is one document; in a file called *.jsonl, each line's "text" is. A document is cut into windows
// of window_tokens: first the tokens that the tokenizer puts before a text, then the text's, as many as fit; a window
// of one token is left out. InvalidArgument, naming the file: it is empty, not text (a NUL, or bytes that are not
// UTF-8), or its tokens are not the model's. NotFound, PermissionDenied, ResourceExhausted (more than 256 MiB).
absl::StatusOr<std::vector<TokenWindow>> ReadTokenWindows(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                                          const TextLimits& limits);

int64_t CountTokens(const std::vector<TokenWindow>& windows);

}  // namespace scion
