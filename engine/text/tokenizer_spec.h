// What tokenizer.json and tokenizer_config.json say, read and checked; nothing of it is believed unchecked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/bpe_merges.h"
#include "engine/text/pre_tokenizer.h"

namespace scion {

inline constexpr uint64_t kMaxTokenizerBytes = uint64_t{64} << 20;
inline constexpr uint64_t kMaxTokenizerConfigBytes = uint64_t{4} << 20;
inline constexpr int64_t kMaxTokenizerValues = int64_t{1} << 22;  // vocabulary, merges and the rest
inline constexpr int32_t kMaxTokens = 1 << 22;
inline constexpr int32_t kMaxUnusedIds = 1 << 16;  // ids may have gaps, but not without bound
inline constexpr size_t kMaxAddedTokens = 1 << 16;
inline constexpr size_t kMaxAddedTokenBytes = 256;
inline constexpr size_t kMaxAffixTokens = 16;

struct VocabularyEntry {
  std::string text;  // in the byte alphabet
  int32_t id;
};

struct AddedToken {
  std::string text;
  int32_t id;
  bool special;
  bool normalized;  // looked for after normalization, not before
};

struct TokenizerSpec {
  int32_t size = 0;  // largest id plus one
  std::vector<VocabularyEntry> vocabulary;
  std::vector<BpeMerges::Merge> merges;
  bool ignore_merges = false;  // a pre-token that is a token is taken whole
  bool nfc = false;
  std::vector<AddedToken> added_tokens;
  std::vector<PreTokenizeStep> pre_tokenizer;
  std::vector<int32_t> prefix;  // what the post-processor puts around a text
  std::vector<int32_t> suffix;
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> eos_token_id;
  std::optional<std::string> chat_template;
};

// An empty tokenizer_config_json means there is none. InvalidArgument: damaged. Unimplemented: sound, perhaps, but of a
// kind that is not supported. ResourceExhausted: too large. The messages name file and part.
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(std::string_view tokenizer_json,
                                                std::string_view tokenizer_config_json);

}  // namespace scion
