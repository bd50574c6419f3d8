#include "extract/token_histogram.h"

#include <algorithm>
#include <string>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{256} << 10;

// Where a piece ends: after its last line, or before a character that it cuts.
size_t EndOfPiece(std::string_view piece) {
  if (const size_t line = piece.rfind('\n'); line != piece.npos) return line + 1;
  size_t end = piece.size();
  while (end > 1 && piece.size() - end < 3 && (static_cast<uint8_t>(piece[end - 1]) & 0xc0) == 0x80) --end;
  const bool begins_character = static_cast<uint8_t>(piece[end - 1]) >= 0xc0;
  return begins_character && end > 1 ? end - 1 : piece.size();
}

}  // namespace

absl::StatusOr<std::vector<uint64_t>> CountTokens(const std::filesystem::path& text, const Tokenizer& tokenizer,
                                                  int vocab_size, Progress& progress) {
  SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(text));
  std::vector<uint64_t> counts(static_cast<size_t>(vocab_size));
  std::string piece;
  std::vector<int32_t> ids;
  for (uint64_t begin = 0; begin < file.size(); begin += piece.size()) {
    if (CancelRequested()) return absl::CancelledError(absl::StrCat("interrupted while reading ", text.string()));
    const uint64_t left = file.size() - begin;
    piece.resize(std::min(kPieceBytes, left));
    SCION_RETURN_IF_ERROR(file.Read(begin, std::as_writable_bytes(std::span(piece))));
    if (piece.size() < left) piece.resize(EndOfPiece(piece));
    ids.clear();
    tokenizer.Encode(piece, {.parse_special = false, .add_special = false}, ids);
    for (const int32_t id : ids) {
      if (id >= vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(text.string(), ": the tokenizer gives token ", id, ", but the model has ", vocab_size));
      }
      ++counts[static_cast<size_t>(id)];
    }
    progress.Advance(piece.size());
  }
  if (std::ranges::all_of(counts, [](uint64_t count) { return count == 0; })) {
    return absl::InvalidArgumentError(absl::StrCat(text.string(), ": no token of the vocabulary is in the text"));
  }
  return counts;
}

}  // namespace scion
