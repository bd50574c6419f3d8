// The reader of a safetensors file's frame, on any bytes. Whatever is accepted must lie inside the file, side by side.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/model/safetensors.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto header_bytes = scion::ParseSafetensorsHeaderLength(file.substr(0, 8), size, "fuzz.safetensors");
  if (!header_bytes.ok()) return 0;
  Check(*header_bytes <= size - 8);
  const uint64_t data_offset = 8 + *header_bytes;
  const auto tensors =
      scion::ParseSafetensorsHeader(file.substr(8, *header_bytes), size - data_offset, "fuzz.safetensors");
  if (!tensors.ok()) return 0;
  uint64_t end = data_offset;
  for (const scion::TensorInfo& tensor : *tensors) {
    Check(tensor.offset == end && tensor.bytes <= size - end);
    Check(!tensor.name.empty() && tensor.shape.size() <= scion::kMaxTensorDims);
    for (int64_t dim : tensor.shape) Check(dim >= 0);
    end += tensor.bytes;
  }
  Check(end == size);
  return 0;
}
