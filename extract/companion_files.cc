#include "extract/companion_files.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <system_error>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 14> kNames = {"added_tokens.json",
                                                     "chat_template.jinja",
                                                     "chat_template.json",
                                                     "generation_config.json",
                                                     "LICENSE",
                                                     "LICENSE.md",
                                                     "LICENSE.txt",
                                                     "merges.txt",
                                                     "NOTICE",
                                                     "special_tokens_map.json",
                                                     "tokenizer.json",
                                                     "tokenizer.model",
                                                     "tokenizer_config.json",
                                                     "vocab.json"};
// Transformers loads code of these names with trust_remote_code.
constexpr std::array<std::string_view, 3> kCodePrefixes = {"configuration_", "modeling_", "tokenization_"};

bool IsCompanion(std::string_view name) {
  if (std::find(kNames.begin(), kNames.end(), name) != kNames.end()) return true;
  return name.ends_with(".py") && std::any_of(kCodePrefixes.begin(), kCodePrefixes.end(),
                                              [&](std::string_view prefix) { return name.starts_with(prefix); });
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListCompanionFiles(const fs::path& directory) {
  SCION_ASSIGN_OR_RETURN(const fs::path root, ResolveDirectory(directory));
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!IsCompanion(name)) continue;
    const absl::StatusOr<ReadOnlyFile> file = OpenInside(root, name);
    if (!file.ok()) return Annotate(file.status(), directory.string());
    names.push_back(name);
  }
  if (error) return ErrnoStatus(error.value(), "list", directory);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace scion
