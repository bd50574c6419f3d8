#include "engine/text/byte_level_bpe.h"

#include <utility>

#include "engine/base/status.h"
#include "engine/text/affixes.h"
#include "engine/text/byte_alphabet.h"
#include "engine/text/nfc.h"
#include "engine/text/utf8.h"

namespace scion {
namespace {

constexpr int32_t kNoToken = BpeMerges::kNoToken;

}  // namespace

struct ByteLevelBpe::Scratch {
  explicit Scratch(int64_t regex_steps) : regex(regex_steps) {}
  Regex::Scratch regex;
  PreTokenizer::Pieces pieces;
  BpeMerges::Scratch merges;
  std::string normalized;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> ByteLevelBpe::Create(TokenizerSpec spec) {
  SCION_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::Create(spec.pre_tokenizer));
  std::vector<int32_t> byte_ids(256, kNoToken);
  std::vector<std::string> bytes_of_id(spec.size);
  for (VocabularyEntry& entry : spec.vocabulary) {
    std::optional<std::string> bytes = BytesOfAlphabetText(entry.text);
    if (bytes && bytes->size() == 1) byte_ids[static_cast<uint8_t>((*bytes)[0])] = entry.id;
    // A token with a character outside the alphabet is never the result of a merge, and stands for its own text.
    bytes_of_id[entry.id] = bytes ? *std::move(bytes) : std::move(entry.text);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (byte_ids[byte] != kNoToken) continue;
    // Without these it is no vocabulary in the byte alphabet; rare ones a trainer may not have seen.
    const bool needed = byte == '\n' || (byte >= ' ' && byte <= '~');
    if (!needed) continue;
    return absl::InvalidArgumentError(absl::StrCat("the vocabulary has no token for byte ", byte));
  }
  return std::unique_ptr<Tokenizer>(
      new ByteLevelBpe(std::move(spec), std::move(pre_tokenizer), std::move(byte_ids), std::move(bytes_of_id)));
}

ByteLevelBpe::ByteLevelBpe(TokenizerSpec spec, PreTokenizer pre_tokenizer, std::vector<int32_t> byte_ids,
                           std::vector<std::string> bytes_of_id)
    : spec_(std::move(spec)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      merges_(std::move(byte_ids), spec_.merges),
      bytes_of_id_(std::move(bytes_of_id)),
      is_special_(bytes_of_id_.size()) {
  for (const AddedToken& token : spec_.added_tokens) {
    std::string text = token.text;
    if (token.normalized && spec_.nfc) {
      text.clear();
      AppendNfc(token.text, text);
    }
    TokenTrie* const tries = token.normalized ? added_.in_normalized_text : added_.in_raw_text;
    tries[1].Add(text, token.id);
    if (!token.special) tries[0].Add(text, token.id);
    bytes_of_id_[token.id] = token.text;
    is_special_[token.id] = token.special;
    if (token.special) special_of_text_.emplace(token.text, token.id);
  }
  if (spec_.ignore_merges) {
    for (const VocabularyEntry& entry : spec_.vocabulary) {
      // Plain text never becomes a special token.
      if (!is_special_[entry.id]) id_of_bytes_.emplace(bytes_of_id_[entry.id], entry.id);
    }
  }
  spec_.vocabulary = {};
  spec_.merges = {};
}

void ByteLevelBpe::Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const {
  const size_t begin = ids.size();
  Scratch scratch(pre_tokenizer_.MaxRegexSteps(text.size()));
  CutOutTokens(
      added_.in_raw_text[options.parse_special], text,
      [&](std::string_view bytes) { EncodeBytes(bytes, options.parse_special, scratch, ids); },
      [&](int32_t id) { ids.push_back(id); });
  if (options.add_special) AddAffixes(spec_.prefix, spec_.suffix, begin, ids);
}

void ByteLevelBpe::EncodeBytes(std::string_view bytes, bool parse_special, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  size_t position = 0;
  while (position < bytes.size()) {
    const size_t valid = ValidUtf8Prefix(bytes.substr(position));
    if (valid > 0) EncodeText(bytes.substr(position, valid), parse_special, scratch, ids);
    position += valid;
    size_t end = position;
    while (end < bytes.size()) {
      const Utf8Unit unit = FirstUtf8Unit(bytes.substr(end));
      if (unit.kind == Utf8Kind::kCharacter) break;
      end += unit.length;
    }
    if (end > position) EncodePreToken(bytes.substr(position, end - position), scratch, ids);
    position = end;
  }
}

void ByteLevelBpe::EncodeText(std::string_view text, bool parse_special, Scratch& scratch,
                              std::vector<int32_t>& ids) const {
  if (spec_.nfc) {
    scratch.normalized.clear();
    AppendNfc(text, scratch.normalized);
    text = scratch.normalized;
  }
  CutOutTokens(
      added_.in_normalized_text[parse_special], text, [&](std::string_view plain) { EncodePlain(plain, scratch, ids); },
      [&](int32_t id) { ids.push_back(id); });
}

void ByteLevelBpe::EncodePlain(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  scratch.pieces.text.assign(text);
  pre_tokenizer_.Run(scratch.regex, scratch.pieces);
  size_t begin = 0;
  for (const size_t end : scratch.pieces.ends) {
    EncodePreToken(std::string_view(scratch.pieces.text).substr(begin, end - begin), scratch, ids);
    begin = end;
  }
}

void ByteLevelBpe::EncodePreToken(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (spec_.ignore_merges) {
    const auto whole = id_of_bytes_.find(bytes);
    if (whole != id_of_bytes_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  merges_.Encode(bytes, scratch.merges, ids);
}

std::string_view ByteLevelBpe::TokenBytes(int32_t id) const {
  return id >= 0 && id < size() ? std::string_view(bytes_of_id_[id]) : std::string_view();
}

bool ByteLevelBpe::IsSpecial(int32_t id) const { return id >= 0 && id < size() && is_special_[id]; }

std::optional<int32_t> ByteLevelBpe::FindSpecial(std::string_view text) const {
  const auto it = special_of_text_.find(std::string(text));
  if (it == special_of_text_.end()) return std::nullopt;
  return it->second;
}

}  // namespace scion
