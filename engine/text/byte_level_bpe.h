// The byte-level BPE tokenizer: added tokens are cut out, the rest is normalised, pre-tokenized, merged.
//
// Where the text is not UTF-8, its well-formed stretches are encoded one by one, and the bytes between two of them are
// one pre-token that neither the normalizer nor the pre-tokenizer sees. A byte without a token (which only a GGUF
// file's vocabulary may have: SmolLM2's has none for 0xF5) is left out of the text, as in Hugging Face's `tokenizers`.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/text/bpe_merges.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/token_trie.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_spec.h"

namespace scion {

class ByteLevelBpe : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  void Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const override;
  std::string_view TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  int32_t size() const override { return static_cast<int32_t>(bytes_of_id_.size()); }
  std::optional<int32_t> FindSpecial(std::string_view text) const override;
  std::optional<int32_t> bos_token_id() const override { return spec_.bos_token_id; }
  std::optional<int32_t> eos_token_id() const override { return spec_.eos_token_id; }
  const std::optional<std::string>& chat_template() const override { return spec_.chat_template; }

 private:
  struct Scratch;
  // Added tokens by where they are looked for; [0] without the special ones, [1] with them.
  struct AddedTokens {
    TokenTrie in_raw_text[2];
    TokenTrie in_normalized_text[2];
  };

  ByteLevelBpe(TokenizerSpec spec, PreTokenizer pre_tokenizer, std::vector<int32_t> byte_ids,
               std::vector<std::string> bytes_of_id);

  // Raw text without added tokens; bytes of any kind.
  void EncodeBytes(std::string_view bytes, bool parse_special, Scratch& scratch, std::vector<int32_t>& ids) const;
  // Well-formed UTF-8, not yet normalised.
  void EncodeText(std::string_view text, bool parse_special, Scratch& scratch, std::vector<int32_t>& ids) const;
  void EncodePlain(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void EncodePreToken(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const;

  TokenizerSpec spec_;
  PreTokenizer pre_tokenizer_;
  BpeMerges merges_;
  AddedTokens added_;
  std::vector<std::string> bytes_of_id_;
  std::vector<bool> is_special_;
  absl::flat_hash_map<std::string, int32_t> special_of_text_;
  absl::flat_hash_map<std::string_view, int32_t> id_of_bytes_;  // only if ignore_merges; views into bytes_of_id_
};

}  // namespace scion
