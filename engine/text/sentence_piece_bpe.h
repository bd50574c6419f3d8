// SentencePiece's BPE, as GGUF files of model "llama" carry it: tokens of characters with scores, of which the pair
// that makes the token of the highest score is joined first, the leftmost first among equals.
//
// A space is written U+2581 before characters are joined. What no token holds goes through byte tokens ("<0xXX>"), byte
// by byte; in a vocabulary without these, a run of it is one unknown token. Text that is not UTF-8 takes the same way.
//
// With add_space_prefix a space goes before a text and before what follows an added token, as in llama.cpp and in
// Hugging Face's Llama tokenizer; decoding takes away one space there. Decoding gives the bytes back where there are
// byte tokens, but for U+2581 itself, which becomes a space: the reference's ids leave no choice.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/text/gguf_vocabulary.h"
#include "engine/text/token_trie.h"
#include "engine/text/tokenizer.h"

namespace scion {

class SentencePieceBpe : public Tokenizer {
 public:
  // `vocabulary` has passed CheckGgufVocabulary.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(GgufVocabulary vocabulary);

  // O(n log n) in the bytes of the text.
  void Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const override;
  std::string_view TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override { return KindOf(id) == Kind::kSpecial; }
  int32_t size() const override { return static_cast<int32_t>(bytes_of_id_.size()); }
  std::optional<int32_t> FindSpecial(std::string_view text) const override;
  std::optional<int32_t> bos_token_id() const override { return bos_token_id_; }
  std::optional<int32_t> eos_token_id() const override { return eos_token_id_; }
  const std::optional<std::string>& chat_template() const override { return chat_template_; }
  bool SpacePrefixAfter(std::optional<int32_t> id) const override;

 private:
  enum class Kind : uint8_t { kPlain, kUserDefined, kSpecial };
  struct Piece {
    int32_t id;
    uint32_t rank;  // by score, 0 is joined first; equal scores have equal ranks
  };
  struct Scratch;

  SentencePieceBpe() = default;
  absl::Status ReadTokens(GgufVocabulary& vocabulary);
  void RankPieces(const std::vector<float>& scores);
  Kind KindOf(int32_t id) const { return id >= 0 && id < size() ? kind_of_id_[id] : Kind::kPlain; }

  // Text without added tokens.
  void EncodeText(std::string_view text, bool prefix_space, Scratch& scratch, std::vector<int32_t>& ids) const;
  // At most kMaxChunkBytes, spaces written as U+2581.
  void EncodeEscaped(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  // Null if there is no such token.
  const Piece* FindPiece(std::string_view text) const;
  void AppendFallback(std::string_view text, std::vector<int32_t>& ids) const;

  absl::flat_hash_map<std::string, Piece> piece_of_text_;
  size_t longest_piece_ = 0;                          // in bytes
  std::optional<std::array<int32_t, 256>> byte_ids_;  // there are byte tokens for all bytes or for none
  int32_t unknown_id_ = 0;                            // used only without byte_ids_
  TokenTrie added_[2];                                // [0] without the special ones, [1] with them
  std::vector<std::string> bytes_of_id_;
  std::vector<Kind> kind_of_id_;
  absl::flat_hash_map<std::string, int32_t> special_of_text_;
  bool add_space_prefix_ = true;
  std::vector<int32_t> prefix_;
  std::vector<int32_t> suffix_;
  std::optional<int32_t> bos_token_id_;
  std::optional<int32_t> eos_token_id_;
  std::optional<std::string> chat_template_;
};

}  // namespace scion
