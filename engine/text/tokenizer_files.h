// The vocabulary inside a GGUF file as the two files of a Hugging Face directory.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/text/gguf_vocabulary.h"

namespace scion {

struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
};

// Byte-level BPE. Tokenizer::Parse of the files gives the tokenizer that FromGguf gives; added tokens stand in the
// vocabulary too, since `tokenizers` numbers those anew that do not. Errors as Tokenizer::FromGguf; InvalidArgument
// besides for a token that is not UTF-8, and Unimplemented for a vocabulary of SentencePiece's ("llama"), whose form of
// tokenizer.json this engine does not read.
absl::StatusOr<TokenizerFiles> TokenizerFilesOfGguf(GgufVocabulary vocabulary);

}  // namespace scion
