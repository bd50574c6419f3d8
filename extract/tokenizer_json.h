// A GGUF file's tokenizer in the form of a Hugging Face directory.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/text/gguf_vocabulary.h"

namespace scion {

// tokenizer.json: byte-level BPE with the normalizer and pre-tokenizer for which the file's name stands. Unimplemented,
// naming what it is: SentencePiece's ("llama"), a pre-tokenizer that this build does not know, whatever
// Tokenizer::FromGguf refuses.
absl::StatusOr<std::string> TokenizerJson(const GgufVocabulary& vocabulary);

// tokenizer_config.json: BOS, EOS and the chat template. The vocabulary has a TokenizerJson.
std::string TokenizerConfigJson(const GgufVocabulary& vocabulary);

}  // namespace scion
