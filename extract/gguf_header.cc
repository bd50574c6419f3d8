#include "extract/gguf_header.h"

#include <bit>
#include <optional>

#include "engine/base/status.h"
#include "engine/model/gguf.h"

namespace scion {
namespace {

constexpr uint32_t kVersion = 3;
constexpr size_t kMaxNameBytes = kMaxGgufTensorNameBytes - 1;  // GGML's names end with a NUL

void AppendNumber(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
}
void AppendText(std::string& out, std::string_view text) {
  AppendNumber(out, text.size(), 8);
  out.append(text);
}

// GGML's numbers of types.
std::optional<uint32_t> TypeNumber(DType type) {
  switch (type) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ5_0:
      return 6;
    case DType::kQ5_1:
      return 7;
    case DType::kQ8_0:
      return 8;
    case DType::kQ4K:
      return 12;
    case DType::kQ5K:
      return 13;
    case DType::kQ6K:
      return 14;
    case DType::kBF16:
      return 30;
    default:
      return std::nullopt;
  }
}

}  // namespace

void GgufHeaderWriter::Fail(std::string_view what, std::string_view name) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("GGUF: ", Quoted(name), " ", ToAbsl(what)));
}

void GgufHeaderWriter::AddKey(std::string_view key, uint32_t type) {
  if (!names_.insert(absl::StrCat("key ", ToAbsl(key))).second) Fail("comes twice", key);
  AppendText(keys_, key);
  AppendNumber(keys_, type, 4);
  ++num_keys_;
}

void GgufHeaderWriter::AddUint32(std::string_view key, uint32_t value) {
  AddKey(key, static_cast<uint32_t>(GgufType::kUint32));
  AppendNumber(keys_, value, 4);
}

void GgufHeaderWriter::AddFloat32(std::string_view key, float value) {
  AddKey(key, static_cast<uint32_t>(GgufType::kFloat32));
  AppendNumber(keys_, std::bit_cast<uint32_t>(value), 4);
}

void GgufHeaderWriter::AddBool(std::string_view key, bool value) {
  AddKey(key, static_cast<uint32_t>(GgufType::kBool));
  AppendNumber(keys_, value ? 1 : 0, 1);
}

void GgufHeaderWriter::AddString(std::string_view key, std::string_view value) {
  AddKey(key, static_cast<uint32_t>(GgufType::kString));
  if (value.size() > kMaxGgufStringBytes) Fail("is longer than readers take", key);
  AppendText(keys_, value);
}

void GgufHeaderWriter::AddStrings(std::string_view key, std::span<const std::string> values) {
  AddKey(key, static_cast<uint32_t>(GgufType::kArray));
  AppendNumber(keys_, static_cast<uint32_t>(GgufType::kString), 4);
  AppendNumber(keys_, values.size(), 8);
  for (const std::string& value : values) AppendText(keys_, value);
}

void GgufHeaderWriter::AddFloats(std::string_view key, std::span<const float> values) {
  AddKey(key, static_cast<uint32_t>(GgufType::kArray));
  AppendNumber(keys_, static_cast<uint32_t>(GgufType::kFloat32), 4);
  AppendNumber(keys_, values.size(), 8);
  for (float value : values) AppendNumber(keys_, std::bit_cast<uint32_t>(value), 4);
}

void GgufHeaderWriter::AddInt32s(std::string_view key, std::span<const int32_t> values) {
  AddKey(key, static_cast<uint32_t>(GgufType::kArray));
  AppendNumber(keys_, static_cast<uint32_t>(GgufType::kInt32), 4);
  AppendNumber(keys_, values.size(), 8);
  for (int32_t value : values) AppendNumber(keys_, static_cast<uint32_t>(value), 4);
}

void GgufHeaderWriter::AddTensor(std::string_view name, std::span<const int64_t> shape, DType type, uint64_t bytes) {
  if (!names_.insert(absl::StrCat("tensor ", ToAbsl(name))).second) Fail("comes twice", name);
  if (name.size() > kMaxNameBytes) Fail("is longer than readers take", name);
  if (shape.empty() || shape.size() > kMaxGgufTensorDims) Fail("has a shape that GGUF has not", name);
  const std::optional<uint32_t> number = TypeNumber(type);
  if (!number.has_value()) Fail("is of a type that GGUF has not", name);
  AppendText(tensors_, name);
  AppendNumber(tensors_, shape.size(), 4);
  for (size_t d = shape.size(); d-- > 0;) AppendNumber(tensors_, static_cast<uint64_t>(shape[d]), 8);
  AppendNumber(tensors_, number.value_or(0), 4);
  AppendNumber(tensors_, offset_, 8);
  ++num_tensors_;
  if (__builtin_add_overflow(offset_, bytes, &offset_) || offset_ > INT64_MAX) Fail("lies beyond 63 bits", name);
  offset_ += GgufPadding(offset_);
}

absl::StatusOr<std::string> GgufHeaderWriter::Finish() const {
  SCION_RETURN_IF_ERROR(status_);
  std::string bytes(kGgufMagic);
  AppendNumber(bytes, kVersion, 4);
  AppendNumber(bytes, num_tensors_, 8);
  AppendNumber(bytes, num_keys_, 8);
  bytes += keys_;
  bytes += tensors_;
  bytes.append(GgufPadding(bytes.size()), '\0');
  if (bytes.size() > kMaxGgufHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("GGUF: a header of ", bytes.size(), " bytes, more than the limit of ", kMaxGgufHeaderBytes));
  }
  return bytes;
}

}  // namespace scion
