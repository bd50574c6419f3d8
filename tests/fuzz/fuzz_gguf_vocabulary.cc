// A GGUF file's vocabulary, on any keys; and, where that is accepted, the way of any bytes to ids and back. The input
// is five parts behind lines of dashes: a line of model, pre and flags; the tokens, a line each, of type, score and
// text; the merges, a line each; the chat template; the bytes. "\xXX" in a token is a byte, so that any text can be a
// token's; with the flag "bytes" the 256 bytes come first, in the model's own way of writing.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

std::string_view TakeUntil(std::string_view& text, std::string_view separator) {
  const size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + separator.size());
  return part;
}

std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.substr(i).starts_with("\\x") && i + 4 <= text.size()) {
      out.push_back(static_cast<char>(std::strtol(std::string(text.substr(i + 2, 2)).c_str(), nullptr, 16)));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

void Add(scion::GgufVocabulary& vocabulary, std::string text, float score, int32_t type) {
  vocabulary.tokens.push_back(std::move(text));
  vocabulary.scores.push_back(score);
  vocabulary.types.push_back(type);
}

void AddBytes(scion::GgufVocabulary& vocabulary) {
  int shifted = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    if (vocabulary.model == "llama") {
      constexpr char kDigits[] = "0123456789ABCDEF";
      Add(vocabulary, std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">", 0, 6);
      continue;
    }
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int character = printable ? byte : shifted++;
    std::string text;
    if (character >= 0x80) text.push_back(static_cast<char>(0xC0 | character >> 6));
    text.push_back(static_cast<char>(character >= 0x80 ? 0x80 | (character & 0x3F) : character));
    Add(vocabulary, text, 0, 1);
  }
}

scion::GgufVocabulary ReadVocabulary(std::string_view& rest) {
  constexpr std::string_view kSeparator = "\n----\n";
  scion::GgufVocabulary vocabulary;
  std::string_view head = TakeUntil(rest, kSeparator);
  vocabulary.model = std::string(TakeUntil(head, " "));
  vocabulary.pre = std::string(TakeUntil(head, " "));
  const auto flag = [&](std::string_view name) { return head.find(name) != head.npos; };
  if (flag("bytes")) AddBytes(vocabulary);
  if (flag("bos")) vocabulary.add_bos = flag("bos=1");
  if (flag("eos")) vocabulary.add_eos = flag("eos=1");
  if (flag("space")) vocabulary.add_space_prefix = flag("space=1");
  std::string_view tokens = TakeUntil(rest, kSeparator);
  while (!tokens.empty()) {
    std::string_view line = TakeUntil(tokens, "\n");
    const int32_t type = std::atoi(std::string(TakeUntil(line, " ")).c_str());
    const float score = std::strtof(std::string(TakeUntil(line, " ")).c_str(), nullptr);
    const int32_t id = static_cast<int32_t>(vocabulary.tokens.size());
    if (line == "<s>") vocabulary.bos_token_id = id;
    if (line == "</s>") vocabulary.eos_token_id = id;
    if (line == "<unk>") vocabulary.unknown_token_id = id;
    Add(vocabulary, Unescape(line), score, type);
  }
  if (flag("untyped")) vocabulary.types.clear();
  if (flag("unscored")) vocabulary.scores.clear();
  std::string_view merges = TakeUntil(rest, kSeparator);
  while (!merges.empty()) vocabulary.merges.emplace_back(TakeUntil(merges, "\n"));
  vocabulary.chat_template = std::string(TakeUntil(rest, kSeparator));
  return vocabulary;
}

void CheckRoundTrip(const scion::Tokenizer& tokenizer, bool exact, std::string_view bytes) {
  for (const bool parse_special : {false, true}) {
    std::vector<int32_t> ids;
    tokenizer.Encode(bytes, {.parse_special = parse_special, .add_special = false}, ids);
    for (const int32_t id : ids) Check(id >= 0 && id < tokenizer.size());
    const std::string decoded = tokenizer.Decode(ids, /*skip_special=*/false);
    // U+2581 is how SentencePiece writes a space.
    if (exact && bytes.find("\u2581") == bytes.npos) Check(decoded == bytes);
    scion::IncrementalDetokenizer detokenizer(tokenizer, /*skip_special=*/false, scion::TextPart::kBeginning);
    std::string text;
    for (const int32_t id : ids) detokenizer.Push(id, text);
    detokenizer.Finish(text);
    Check(text.size() >= decoded.size());  // U+FFFD is not shorter than what it stands for
  }
  const auto chat = scion::ChatTemplate::Create(tokenizer);
  if (!chat.ok()) return;
  const scion::ChatMessage messages[] = {{"user", std::string(bytes)}};
  const auto ids = chat->Render(messages, tokenizer);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) Check(id >= 0 && id < tokenizer.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  scion::GgufVocabulary vocabulary = ReadVocabulary(rest);
  bool exact = false;  // byte tokens, of which there are all or none, and no normalizer
  for (const int32_t type : vocabulary.types) exact |= vocabulary.model == "llama" && type == 6;
  const auto tokenizer = scion::Tokenizer::FromGguf(std::move(vocabulary));
  if (tokenizer.ok()) CheckRoundTrip(**tokenizer, exact, rest);
  return 0;
}
