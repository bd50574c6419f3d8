// Where packed weights are kept between runs, and who is told of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace scion {

// What became of a cache file.
struct PackCacheNote {
  bool is_problem = false;  // the model is served all the same
  std::string text;
};

struct PackCacheOptions {
  // Holds this model's files and no other's; made when there is something to keep. Empty: nothing is kept.
  std::filesystem::path directory;
  // A model whose packed weights are smaller is packed at every start instead: that takes no time.
  uint64_t min_bytes = 0;
  std::function<void(const PackCacheNote&)> observer = nullptr;  // called while the model loads; may be null
};

// Of a model without any directory named for it.
inline constexpr uint64_t kMinPackCacheBytes = uint64_t{64} << 20;

// Beside a model directory or GGUF file: "demo.scion-pack" of "demo". Of a link, beside what it leads to.
std::filesystem::path PackDirectoryBeside(const std::filesystem::path& model);
// Below a directory that several models share: a name of the model's own, after its whole path.
std::filesystem::path PackDirectoryIn(const std::filesystem::path& parent, const std::filesystem::path& model);

}  // namespace scion
