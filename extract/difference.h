// A place where a model directory is not what it should be.
#pragma once

#include <string>

namespace scion {

struct Difference {
  std::string file;    // relative to the directory; empty if the difference is not in a file's bytes
  std::string tensor;  // empty if it is not in one tensor
  std::string what;
};

// "domains/cpp.safetensors: model.layers.3...: what".
inline std::string ToString(const Difference& difference) {
  std::string text = difference.file;
  if (!difference.tensor.empty()) text += (text.empty() ? "" : ": ") + difference.tensor;
  return text + (text.empty() ? "" : ": ") + difference.what;
}

}  // namespace scion
