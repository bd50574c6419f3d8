#include "engine/text/nfc.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>

#include "engine/text/utf8.h"

namespace scion {
namespace {

constexpr int kMaxSequenceCharacters = 1024;

void AppendPiece(const icu::Normalizer2& nfc, std::string_view piece, std::string& out) {
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode error = U_ZERO_ERROR;
  const size_t size_before = out.size();
  nfc.normalizeUTF8(0, icu::StringPiece(piece.data(), static_cast<int32_t>(piece.size())), sink, nullptr, error);
  if (U_FAILURE(error)) {
    out.resize(size_before);
    out.append(piece);
  }
}

}  // namespace

void AppendNfc(std::string_view utf8, std::string& out) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  if (U_FAILURE(error)) {
    out.append(utf8);
    return;
  }
  size_t piece_begin = 0;
  int characters_without_boundary = 0;
  // Pieces end at boundaries, so cutting there changes nothing; they are kept short of ICU's 32-bit lengths.
  constexpr size_t kPieceBytes = 4096;
  for (size_t position = 0; position < utf8.size();) {
    const size_t length = FirstUtf8Unit(utf8.substr(position)).length;
    const char32_t character = DecodeCharacter(utf8.substr(position, length));
    const bool boundary = character < 0x300 || nfc->hasBoundaryBefore(static_cast<UChar32>(character));
    characters_without_boundary = boundary ? 0 : characters_without_boundary + 1;
    const bool cut =
        (boundary && position - piece_begin >= kPieceBytes) || characters_without_boundary > kMaxSequenceCharacters;
    if (cut) {
      AppendPiece(*nfc, utf8.substr(piece_begin, position - piece_begin), out);
      piece_begin = position;
      characters_without_boundary = 0;
    }
    position += length;
  }
  AppendPiece(*nfc, utf8.substr(piece_begin), out);
}

}  // namespace scion
