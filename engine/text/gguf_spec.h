// Checks the vocabulary of a GGUF file; nothing of it is believed unchecked. Messages begin with "tokenizer.ggml".
//
// InvalidArgument: damaged. Unimplemented: sound, perhaps, but of a kind that is not supported. ResourceExhausted: too
// large.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/gguf_vocabulary.h"
#include "engine/text/tokenizer_spec.h"

namespace scion {

inline constexpr size_t kMaxGgufTokenBytes = 2048;

// What holds for every kind: sizes, types and ids. Fills in the types where the file has none: all are normal, but in
// "llama", "<0xXX>" are bytes, and the ids that the file names are the unknown and control tokens that they must be.
absl::Status CheckGgufVocabulary(GgufVocabulary& vocabulary);

// The byte that a text like "<0x0A>" stands for.
std::optional<uint8_t> ByteOfGgufToken(std::string_view text);

// Tokens that are looked for in text as they are: unknown and control tokens (special), user-defined ones. The
// vocabulary has passed CheckGgufVocabulary.
absl::StatusOr<std::vector<AddedToken>> GgufAddedTokens(const GgufVocabulary& vocabulary);

// Byte-level BPE, model "gpt2"; the vocabulary has passed CheckGgufVocabulary.
absl::StatusOr<TokenizerSpec> ByteLevelSpecOfGguf(GgufVocabulary vocabulary);

// BOS and EOS around a text. `add_bos` is the kind's default, for a file that does not say and names a BOS.
absl::Status SetGgufAffixes(const GgufVocabulary& vocabulary, bool add_bos, std::vector<int32_t>& prefix,
                            std::vector<int32_t>& suffix);

}  // namespace scion
