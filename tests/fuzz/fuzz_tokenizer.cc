// tokenizer.json, on any text; and, where that is accepted, the way of any bytes to ids and back. The input is three
// parts behind lines of dashes: tokenizer.json, tokenizer_config.json, the bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

std::string_view TakePart(std::string_view& text) {
  constexpr std::string_view kSeparator = "\n----\n";
  const size_t end = text.find(kSeparator);
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + kSeparator.size());
  return part;
}

void CheckRoundTrip(const scion::Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<int32_t> ids;
  tokenizer.Encode(bytes, {.parse_special = false, .add_special = false}, ids);
  for (int32_t id : ids) Check(id >= 0 && id < tokenizer.size());
  scion::IncrementalDetokenizer detokenizer(tokenizer, /*skip_special=*/false);
  std::string text;
  for (int32_t id : ids) detokenizer.Push(id, text);
  detokenizer.Finish(text);
  tokenizer.Decode(ids, /*skip_special=*/true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view tokenizer_json = TakePart(rest);
  const std::string_view tokenizer_config_json = TakePart(rest);
  const auto tokenizer = scion::Tokenizer::Parse(tokenizer_json, tokenizer_config_json);
  if (tokenizer.ok()) CheckRoundTrip(**tokenizer, rest);
  return 0;
}
