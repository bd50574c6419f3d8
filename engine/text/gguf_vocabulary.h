// The vocabulary inside a GGUF file: the keys `tokenizer.ggml.*` and `tokenizer.chat_template` as the GGUF
// specification defines them, not yet checked. Tokenizer::FromGguf checks them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace scion {

// The values of `tokenizer.ggml.token_type`.
enum class GgufTokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,      // stands for text that has no token
  kControl = 3,      // special: <s>, <|im_end|>
  kUserDefined = 4,  // found in any text before it is cut and merged
  kUnused = 5,       // an id that no text has
  kByte = 6,         // "<0xXX>", one byte
};

struct GgufVocabulary {
  std::string model;                         // .model: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE)
  std::string pre;                           // .pre: the pre-tokenizer's name; empty where the key is absent
  std::vector<std::string> tokens;           // .tokens: [vocab_size], the text of each id, in the model's own alphabet
  std::vector<float> scores;                 // .scores: [vocab_size], the higher the sooner joined; or empty
  std::vector<int32_t> types;                // .token_type: [vocab_size] of GgufTokenType; or empty: all are normal
  std::vector<std::string> merges;           // .merges: "left right" in order of rank; empty for "llama"
  std::optional<int32_t> bos_token_id;       // .bos_token_id
  std::optional<int32_t> eos_token_id;       // .eos_token_id
  std::optional<int32_t> unknown_token_id;   // .unknown_token_id
  std::optional<bool> add_bos;               // .add_bos_token: the BOS goes before a text
  std::optional<bool> add_eos;               // .add_eos_token: the EOS goes after a text
  std::optional<bool> add_space_prefix;      // .add_space_prefix: a space goes before a text ("llama" only)
  std::optional<std::string> chat_template;  // tokenizer.chat_template: Jinja
  // scion.tokenizer.nfc, this project's own key: whether text is normalised to NFC, where it is not as `pre` has it.
  std::optional<bool> nfc;
};

}  // namespace scion
