#include "extract/fold_text.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/text/utf8.h"

namespace scion {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{256} << 20;
constexpr size_t kPieceBytes =
    size_t{1} << 16;  // of a document, encoded at a time: at the end of a line, if there is one

absl::StatusOr<std::vector<std::string>> ReadDocuments(const std::filesystem::path& path) {
  SCION_ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kMaxTextBytes));
  const auto invalid = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", ToAbsl(what)));
  };
  if (text.empty()) return invalid("is empty");
  if (text.find('\0') != std::string::npos || ValidUtf8Prefix(text) != text.size())
    return invalid("is not text in UTF-8");
  if (path.extension() != ".jsonl") return std::vector<std::string>{std::move(text)};
  std::vector<std::string> documents;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    SCION_ASSIGN_OR_RETURN(const Json document, ParseJson(line, path.string(), {.max_bytes = kMaxTextBytes}));
    if (!document.is_object()) return invalid("a line is not a JSON object");
    absl::StatusOr<std::string> member = GetString(document, "text");
    if (!member.ok()) return Annotate(member.status(), path.string());
    documents.push_back(*std::move(member));
  }
  return documents;
}

// Appends the document's tokens, no more than `max_tokens`.
void Encode(const Tokenizer& tokenizer, std::string_view document, size_t max_tokens, std::vector<int32_t>& ids) {
  while (!document.empty() && ids.size() < max_tokens) {
    size_t size = document.size();
    if (size > kPieceBytes) {
      const size_t line_end = document.rfind('\n', kPieceBytes - 1);
      size = line_end == std::string_view::npos ? kPieceBytes : line_end + 1;
    }
    while (size < document.size() && (static_cast<unsigned char>(document[size]) & 0xC0) == 0x80) ++size;
    tokenizer.Encode(document.substr(0, size), {.parse_special = false, .add_special = false}, ids);
    document.remove_prefix(size);
  }
  if (ids.size() > max_tokens) ids.resize(max_tokens);
}

}  // namespace

TextLimits EvaluationLimits(const ModelSpec& spec) {
  return {.window_tokens = std::min(256, spec.max_position_embeddings),
          .max_tokens = int64_t{1} << 20,
          .vocab_size = spec.vocab_size};
}

absl::StatusOr<std::vector<TokenWindow>> ReadTokenWindows(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                                          const TextLimits& limits) {
  SCION_ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(file));
  TokenWindow before;
  tokenizer.Encode("", {.parse_special = false, .add_special = true}, before);
  const size_t window_tokens = static_cast<size_t>(limits.window_tokens);
  if (before.size() + 2 > window_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("windows of ", window_tokens,
                                                   " tokens have no place for text: the tokenizer puts ", before.size(),
                                                   " tokens before it"));
  }
  const size_t step = window_tokens - before.size();
  std::vector<TokenWindow> windows;
  int64_t left = limits.max_tokens;
  for (const std::string& document : documents) {
    std::vector<int32_t> ids;
    Encode(tokenizer, document, static_cast<size_t>(std::max<int64_t>(left, 0)), ids);
    left -= static_cast<int64_t>(ids.size());
    for (size_t begin = 0; begin < ids.size(); begin += step) {
      TokenWindow window = before;
      const size_t end = std::min(ids.size(), begin + step);
      window.insert(window.end(), ids.begin() + static_cast<ptrdiff_t>(begin),
                    ids.begin() + static_cast<ptrdiff_t>(end));
      if (window.size() < 2) continue;
      const auto outside = std::ranges::find_if(window, [&](int32_t id) { return id < 0 || id >= limits.vocab_size; });
      if (outside != window.end()) {
        return absl::InvalidArgumentError(absl::StrCat(file.string(), ": token ", *outside,
                                                       " is not in the model's vocabulary of ", limits.vocab_size));
      }
      windows.push_back(std::move(window));
    }
  }
  return windows;
}

int64_t CountTokens(const std::vector<TokenWindow>& windows) {
  int64_t count = 0;
  for (const TokenWindow& window : windows) count += static_cast<int64_t>(window.size());
  return count;
}

}  // namespace scion
