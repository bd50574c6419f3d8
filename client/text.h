// Text as it enters and leaves the terminal.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace scion::client {

// The offset of the first byte that is not UTF-8; nothing if `text` is UTF-8. (A protobuf string must be.)
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// A token on one line: control characters, backslash and bytes outside UTF-8 as escapes (\n, \x1b).
std::string Escape(std::string_view bytes);

// One decimal token id after the other, separated by commas or blanks. InvalidArgument for anything else.
absl::StatusOr<std::vector<int>> ParseTokenIds(std::string_view text);

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path);

// The "text" field of every line of a JSONL file. InvalidArgument names file and line.
absl::StatusOr<std::vector<std::string>> ReadJsonlTexts(const std::filesystem::path& path);

}  // namespace scion::client
