// What a GGUF file says of its tokenizer.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "engine/model/gguf.h"
#include "engine/text/gguf_vocabulary.h"

namespace scion {

// Nothing if the file has no tokenizer: tokenizer.ggml.model is absent, "none" or "no_vocab". DataLoss names file and
// key: arrays whose lengths disagree, an element of another type, a score that is not finite, a token type that the
// format does not have. InvalidArgument: a value of another type, an id outside the vocabulary. ResourceExhausted: more
// than kMaxGgufArrayStrings tokens and merges together.
absl::StatusOr<std::optional<GgufVocabulary>> ReadGgufVocabulary(const ReadOnlyFile& file,
                                                                 const GgufMetadata& metadata);

}  // namespace scion
