// The header of one GGUF file, version 2 or 3, little-endian: magic, version, counts, metadata (key, type, value),
// tensor infos (name, dimensions, type, offset), then the data, each tensor aligned.
//
// Nothing in it is believed: each error is a DataLoss that names file and key or tensor (Unimplemented for what the
// format knows and this engine does not; ResourceExhausted beyond the limits below). Counts and lengths are checked
// against the bytes that are left before anything is allocated. Arrays stay in the file until somebody asks for one: a
// header costs the bytes of its single strings, about 150 bytes per key and about 300 per tensor, and a buffer of 64
// KiB.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/model/safetensors.h"

namespace scion {

inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr uint64_t kMaxGgufHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxGgufKeys = 1 << 14;
inline constexpr uint64_t kMaxGgufKeyBytes = 65535;
inline constexpr uint64_t kMaxGgufStringBytes = 4 << 20;
inline constexpr uint64_t kMaxGgufArrayStrings = 1 << 20;
inline constexpr int kMaxGgufTensorDims = 4;
inline constexpr uint64_t kMaxGgufTensorNameBytes = 64;
inline constexpr uint64_t kMaxGgufAlignment = 1 << 20;

// As the format numbers them.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};
std::string_view GgufTypeName(GgufType type);

// Where the elements of an array lie; inside the file, and of whole elements.
struct GgufArray {
  GgufType type;  // not kArray
  uint64_t count;
  uint64_t offset;  // from the start of the file
  uint64_t bytes;

  friend bool operator==(const GgufArray&, const GgufArray&) = default;
};

using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray>;

// The getters name file and key and say what was expected: InvalidArgument if the value is absent (where there is no
// "Optional" in the name), of another type, or out of range.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  explicit GgufMetadata(std::string_view file_name) : file_name_(file_name) {}

  const std::string& file_name() const { return file_name_; }
  size_t size() const { return values_.size(); }
  // nullptr if there is no such key.
  const GgufValue* Find(std::string_view key) const;
  // Whether the key is new; if not, the old value stays.
  bool Insert(std::string key, GgufValue value);

  absl::StatusOr<int64_t> GetInt(std::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<std::optional<int64_t>> GetOptionalInt(std::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<std::optional<double>> GetOptionalNumber(std::string_view key) const;  // finite
  absl::StatusOr<std::optional<bool>> GetOptionalBool(std::string_view key) const;
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  absl::StatusOr<std::optional<std::string>> GetOptionalString(std::string_view key) const;
  absl::StatusOr<std::optional<GgufArray>> GetOptionalArray(std::string_view key) const;

  // "file: key 'k': message"
  std::string Message(std::string_view key, std::string_view message) const;

 private:
  std::string file_name_;
  absl::flat_hash_map<std::string, GgufValue> values_;
};

struct GgufHeader {
  uint32_t version = 0;
  GgufMetadata metadata;
  // With the file's names, sorted by offset. Shapes in this engine's order, the reverse of the file's: the last
  // dimension is a row, of whole blocks.
  std::vector<TensorInfo> tensors;
};

// Whether the file begins as a GGUF file does.
absl::StatusOr<bool> HasGgufMagic(const ReadOnlyFile& file);

// Reads and checks the header. Tensors lie inside the file, aligned, side by side but for the padding.
// file_name: what messages call the file.
absl::StatusOr<GgufHeader> ReadGgufHeader(const ReadOnlyFile& file, std::string_view file_name);

// The elements of an array of the metadata, read from the file it came from. DataLoss if it has elements of another
// type; ResourceExhausted for more than kMaxGgufArrayStrings strings. Strings cost at most 56 bytes each beyond their
// bytes in the file.
absl::StatusOr<std::vector<std::string>> ReadGgufStrings(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                         std::string_view key, const GgufArray& array);
absl::StatusOr<std::vector<float>> ReadGgufFloats(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                  std::string_view key, const GgufArray& array);
absl::StatusOr<std::vector<int32_t>> ReadGgufInt32s(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                    std::string_view key, const GgufArray& array);

}  // namespace scion
