// How often each token of a vocabulary comes in a text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"
#include "extract/progress.h"

namespace scion {

// [vocab_size]. The file is read in pieces, cut at line ends where there are any, so that a text of any length needs
// little memory. Special tokens are never looked for. NotFound or PermissionDenied: no such file; InvalidArgument: a
// text without tokens, or with one beyond the vocabulary; Cancelled after RequestCancel.
absl::StatusOr<std::vector<uint64_t>> CountTokens(const std::filesystem::path& text, const Tokenizer& tokenizer,
                                                  int vocab_size, Progress& progress);

}  // namespace scion
