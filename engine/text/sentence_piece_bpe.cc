#include "engine/text/sentence_piece_bpe.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "engine/base/status.h"
#include "engine/text/affixes.h"
#include "engine/text/gguf_spec.h"
#include "engine/text/utf8.h"

namespace scion {
namespace {

constexpr std::string_view kEscapedSpace = "\u2581";
constexpr uint32_t kNone = UINT32_MAX;
constexpr int32_t kNoToken = -1;
// Positions are 32-bit; a longer text is encoded in chunks.
constexpr size_t kMaxChunkBytes = size_t{1} << 30;

std::string UnescapeSpaces(std::string_view text) {
  std::string out;
  for (size_t position = 0; position < text.size();) {
    if (text.substr(position).starts_with(kEscapedSpace)) {
      out.push_back(' ');
      position += kEscapedSpace.size();
    } else {
      out.push_back(text[position++]);
    }
  }
  return out;
}

}  // namespace

struct SentencePieceBpe::Scratch {
  struct Symbol {
    uint32_t size;  // in bytes from its position on; 0: joined into the one before it
    uint32_t previous;
    uint32_t next;
  };
  std::string escaped;
  std::vector<Symbol> symbols;  // by the position of the first byte
  std::vector<uint64_t> queue;  // rank << 32 | position, a heap with the smallest on top
};

absl::StatusOr<std::unique_ptr<Tokenizer>> SentencePieceBpe::Create(GgufVocabulary vocabulary) {
  if (vocabulary.scores.empty()) return absl::InvalidArgumentError("scores: a \"llama\" vocabulary must have them");
  for (size_t id = 0; id < vocabulary.scores.size(); ++id) {
    if (!std::isfinite(vocabulary.scores[id])) {
      return absl::InvalidArgumentError(absl::StrCat("scores: that of token ", id, " is not finite"));
    }
  }
  std::unique_ptr<SentencePieceBpe> tokenizer(new SentencePieceBpe());
  SCION_RETURN_IF_ERROR(tokenizer->ReadTokens(vocabulary));
  tokenizer->RankPieces(vocabulary.scores);
  SCION_RETURN_IF_ERROR(SetGgufAffixes(vocabulary, /*add_bos=*/true, tokenizer->prefix_, tokenizer->suffix_));
  tokenizer->add_space_prefix_ = vocabulary.add_space_prefix.value_or(true);
  tokenizer->bos_token_id_ = vocabulary.bos_token_id;
  tokenizer->eos_token_id_ = vocabulary.eos_token_id;
  tokenizer->chat_template_ = std::move(vocabulary.chat_template);
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

absl::Status SentencePieceBpe::ReadTokens(GgufVocabulary& vocabulary) {
  SCION_ASSIGN_OR_RETURN(const std::vector<AddedToken> added, GgufAddedTokens(vocabulary));
  const size_t size = vocabulary.tokens.size();
  bytes_of_id_.resize(size);
  kind_of_id_.resize(size, Kind::kPlain);
  for (const AddedToken& token : added) {
    added_[1].Add(token.text, token.id);
    if (!token.special) added_[0].Add(token.text, token.id);
    if (token.special) special_of_text_.emplace(token.text, token.id);
    kind_of_id_[token.id] = token.special ? Kind::kSpecial : Kind::kUserDefined;
    bytes_of_id_[token.id] = token.text;
  }
  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(kNoToken);
  size_t num_bytes = 0;
  for (size_t i = 0; i < size; ++i) {
    const int32_t id = static_cast<int32_t>(i);
    const GgufTokenType type = static_cast<GgufTokenType>(vocabulary.types[i]);
    const std::string& text = vocabulary.tokens[i];
    if (type == GgufTokenType::kByte) {
      const std::optional<uint8_t> byte = ByteOfGgufToken(text);
      if (!byte) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", id, " is a byte token, but ", Quoted(text), " is not of the form <0xXX>"));
      }
      byte_ids[*byte] = id;  // texts are unique
      ++num_bytes;
      bytes_of_id_[i] = std::string(1, static_cast<char>(*byte));
    } else if (type == GgufTokenType::kNormal || type == GgufTokenType::kUserDefined) {
      if (ValidUtf8Prefix(text) != text.size()) {
        return absl::InvalidArgumentError(absl::StrCat("token ", id, ": ", Quoted(text), " is not UTF-8"));
      }
      // Text without added tokens holds no user-defined one, but for those that an escaped space would make up.
      if (type == GgufTokenType::kUserDefined) continue;
      bytes_of_id_[i] = UnescapeSpaces(text);
      if (text.empty()) continue;
      piece_of_text_.emplace(text, Piece{.id = id, .rank = 0});
      longest_piece_ = std::max(longest_piece_, text.size());
    }
  }
  if (FindPiece(kEscapedSpace) == nullptr) {
    // Its bytes would not decode to a space.
    return absl::InvalidArgumentError("there is no token for U+2581, the space");
  }
  if (num_bytes == byte_ids.size()) {
    byte_ids_ = byte_ids;
  } else if (num_bytes > 0) {
    const size_t byte = std::find(byte_ids.begin(), byte_ids.end(), kNoToken) - byte_ids.begin();
    return absl::InvalidArgumentError(absl::StrCat("there are byte tokens, but none for byte ", byte));
  } else if (!vocabulary.unknown_token_id) {
    return absl::InvalidArgumentError("there are neither byte tokens nor an unknown_token_id");
  }
  unknown_id_ = vocabulary.unknown_token_id.value_or(0);
  return absl::OkStatus();
}

void SentencePieceBpe::RankPieces(const std::vector<float>& scores) {
  std::vector<float> descending;
  descending.reserve(piece_of_text_.size());
  for (const auto& [text, piece] : piece_of_text_) descending.push_back(scores[piece.id]);
  std::sort(descending.begin(), descending.end(), std::greater<>());
  descending.erase(std::unique(descending.begin(), descending.end()), descending.end());
  for (auto& [text, piece] : piece_of_text_) {
    const auto it = std::lower_bound(descending.begin(), descending.end(), scores[piece.id], std::greater<>());
    piece.rank = static_cast<uint32_t>(it - descending.begin());
  }
}

void SentencePieceBpe::Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const {
  const size_t begin = ids.size();
  Scratch scratch;
  std::optional<int32_t> last_added;
  CutOutTokens(
      added_[options.parse_special], text,
      [&](std::string_view plain) { EncodeText(plain, SpacePrefixAfter(last_added), scratch, ids); },
      [&](int32_t id) {
        ids.push_back(id);
        last_added = id;
      });
  if (options.add_special) AddAffixes(prefix_, suffix_, begin, ids);
}

void SentencePieceBpe::EncodeText(std::string_view text, bool prefix_space, Scratch& scratch,
                                  std::vector<int32_t>& ids) const {
  std::string& escaped = scratch.escaped;
  escaped.assign(prefix_space ? kEscapedSpace : "");
  for (size_t position = 0; position < text.size(); ++position) {
    // No character is torn.
    if (escaped.size() >= kMaxChunkBytes && (text[position] & 0xC0) != 0x80) {
      EncodeEscaped(escaped, scratch, ids);
      escaped.clear();
    }
    if (text[position] == ' ') {
      escaped.append(kEscapedSpace);
    } else {
      escaped.push_back(text[position]);
    }
  }
  EncodeEscaped(escaped, scratch, ids);
}

void SentencePieceBpe::EncodeEscaped(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& [escaped, symbols, queue] = scratch;
  symbols.resize(text.size());
  queue.clear();
  uint32_t last = kNone;
  for (size_t position = 0; position < text.size();) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(position));
    const uint32_t size = unit.kind == Utf8Kind::kCharacter ? static_cast<uint32_t>(unit.length) : 1;
    const uint32_t here = static_cast<uint32_t>(position);
    symbols[here] = {.size = size, .previous = last, .next = kNone};
    if (last != kNone) symbols[last].next = here;
    last = here;
    position += size;
  }
  const auto piece_at = [&](uint32_t position) -> const Piece* {
    const uint32_t right = symbols[position].next;
    if (right == kNone) return nullptr;
    return FindPiece(text.substr(position, symbols[position].size + symbols[right].size));
  };
  const auto entry = [](const Piece& piece, uint32_t position) { return uint64_t{piece.rank} << 32 | position; };
  for (uint32_t i = text.empty() ? kNone : 0; i != kNone; i = symbols[i].next) {
    if (const Piece* piece = piece_at(i)) queue.push_back(entry(*piece, i));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto push = [&](uint32_t position) {
    const Piece* piece = piece_at(position);
    if (piece == nullptr) return;
    queue.push_back(entry(*piece, position));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const uint32_t position = static_cast<uint32_t>(top);
    if (symbols[position].size == 0) continue;
    // Stale when one of the two has changed since; another pair of the same rank has its own, equal entry.
    const Piece* piece = piece_at(position);
    if (piece == nullptr || entry(*piece, position) != top) continue;
    Scratch::Symbol& left = symbols[position];
    Scratch::Symbol& right = symbols[left.next];
    left.size += std::exchange(right.size, 0);
    left.next = right.next;
    if (left.next != kNone) {
      symbols[left.next].previous = position;
      push(position);
    }
    if (left.previous != kNone) push(left.previous);
  }
  // A symbol without a token is one character or one byte of what is not UTF-8.
  uint32_t fallback_begin = 0;
  uint32_t fallback_size = 0;
  for (uint32_t i = text.empty() ? kNone : 0; i != kNone; i = symbols[i].next) {
    const Piece* piece = FindPiece(text.substr(i, symbols[i].size));
    if (piece == nullptr) {
      if (fallback_size == 0) fallback_begin = i;
      fallback_size += symbols[i].size;
      continue;
    }
    AppendFallback(text.substr(fallback_begin, std::exchange(fallback_size, 0)), ids);
    ids.push_back(piece->id);
  }
  AppendFallback(text.substr(fallback_begin, fallback_size), ids);
}

const SentencePieceBpe::Piece* SentencePieceBpe::FindPiece(std::string_view text) const {
  if (text.size() > longest_piece_) return nullptr;
  const auto it = piece_of_text_.find(ToAbsl(text));
  return it == piece_of_text_.end() ? nullptr : &it->second;
}

void SentencePieceBpe::AppendFallback(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (!byte_ids_) {
    ids.push_back(unknown_id_);
    return;
  }
  for (const char byte : text) ids.push_back((*byte_ids_)[static_cast<uint8_t>(byte)]);
}

std::string_view SentencePieceBpe::TokenBytes(int32_t id) const {
  return id >= 0 && id < size() ? std::string_view(bytes_of_id_[id]) : std::string_view();
}

std::optional<int32_t> SentencePieceBpe::FindSpecial(std::string_view text) const {
  const auto it = special_of_text_.find(std::string(text));
  if (it == special_of_text_.end()) return std::nullopt;
  return it->second;
}

bool SentencePieceBpe::SpacePrefixAfter(std::optional<int32_t> id) const {
  if (!add_space_prefix_) return false;
  if (!id) return true;
  // Without byte tokens the unknown token stands inside text, too.
  if (!byte_ids_ && *id == unknown_id_) return false;
  return KindOf(*id) != Kind::kPlain;
}

}  // namespace scion
