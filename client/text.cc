#include "client/text.h"

#include <charconv>
#include <fstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace scion::client {
namespace {

// The length of the UTF-8 character at the start of `text`, or 0 if there is none.
size_t CharacterLength(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first < 0xF0) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = first == 0xED && byte(1) >= 0xA0;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0 && first < 0xF5) {
    const bool overlong = first == 0xF0 && byte(1) < 0x90;
    const bool too_large = first == 0xF4 && byte(1) >= 0x90;
    return continues(1) && continues(2) && continues(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = CharacterLength(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return std::nullopt;
}

std::string Escape(std::string_view bytes) {
  std::string escaped;
  while (!bytes.empty()) {
    const size_t length = CharacterLength(bytes);
    const unsigned char first = bytes[0];
    if (first == '\n') {
      escaped += "\\n";
    } else if (first == '\t') {
      escaped += "\\t";
    } else if (first == '\r') {
      escaped += "\\r";
    } else if (first == '\\') {
      escaped += "\\\\";
    } else if (length == 0 || first < 0x20 || first == 0x7F) {
      absl::StrAppendFormat(&escaped, "\\x%02x", first);
    } else {
      escaped.append(bytes.substr(0, length));
    }
    bytes.remove_prefix(length == 0 ? 1 : length);
  }
  return escaped;
}

absl::StatusOr<std::vector<int>> ParseTokenIds(std::string_view text) {
  std::vector<int> ids;
  const char* at = text.data();
  const char* end = text.data() + text.size();
  while (at != end) {
    if (*at == ',' || *at == ' ' || *at == '\n' || *at == '\t') {
      ++at;
      continue;
    }
    int id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) {
      return absl::InvalidArgumentError(absl::StrCat("token ids: '", std::string(at, end).substr(0, 16),
                                                     "' does not begin with a token id (a number from 0)"));
    }
    ids.push_back(id);
    at = next;
  }
  if (ids.empty()) return absl::InvalidArgumentError("token ids: none given");
  return ids;
}

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path) {
  std::error_code error;
  // Reading a directory would make the stream throw.
  const bool directory = std::filesystem::is_directory(path, error);
  std::ifstream file(path, std::ios::binary);
  if (directory || !file.is_open()) return absl::NotFoundError(absl::StrCat("cannot read ", path.string()));
  std::string text;
  char buffer[1 << 16];
  while (file.read(buffer, sizeof(buffer)), file.gcount() > 0) text.append(buffer, file.gcount());
  if (file.bad()) return absl::NotFoundError(absl::StrCat("cannot read ", path.string()));
  return text;
}

absl::StatusOr<std::vector<std::string>> ReadJsonlTexts(const std::filesystem::path& path) {
  absl::StatusOr<std::string> content = ReadTextFile(path);
  if (!content.ok()) return content.status();
  std::vector<std::string> texts;
  size_t line_number = 0;
  for (size_t begin = 0; begin < content->size();) {
    const size_t end = std::min(content->find('\n', begin), content->size());
    const std::string_view line = std::string_view(*content).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const nlohmann::json document = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto text = document.is_object() ? document.find("text") : document.end();
    if (!document.is_object() || text == document.end() || !text->is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ":", line_number, ": not a JSON object with a string \"text\""));
    }
    texts.push_back(text->get<std::string>());
  }
  return texts;
}

}  // namespace scion::client
