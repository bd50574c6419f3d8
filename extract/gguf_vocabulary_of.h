// A directory's tokenizer in the form of a GGUF file.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/text/gguf_vocabulary.h"
#include "engine/text/tokenizer_spec.h"

namespace scion {

// What tokenizer.json, tokenizer_config.json and chat_template.jinja say, as GGUF's model "gpt2" with the name that
// llama.cpp has for the pre-tokenizer; a GGUF file's own vocabulary as it is. Nothing if the model has no tokenizer.
//
// Unimplemented, naming what it is: a pre-tokenizer without a name, tokens around a text that are not BOS and EOS, an
// added token that normalising text makes a difference to, a tokenizer of SentencePiece, whatever the reader of
// tokenizer.json refuses. FailedPrecondition: more tokens than the model has rows for.
absl::StatusOr<std::optional<GgufVocabulary>> GgufVocabularyOf(const Checkpoint& checkpoint);

// tokens: [vocab_size]; ids without a token are unused ones, "[PAD7]".
absl::StatusOr<GgufVocabulary> GgufVocabularyOf(const TokenizerSpec& spec, int vocab_size);

}  // namespace scion
