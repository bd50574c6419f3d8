#include "engine/model/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "engine/base/aligned_buffer.h"
#include "engine/base/status.h"

namespace scion {

static_assert(std::endian::native == std::endian::little, "numbers of a GGUF file are little-endian, read as they are");

namespace {

constexpr uint64_t kDefaultAlignment = 32;
// The least that the format can spend: on a key of one byte with a value of one byte; on a tensor without a name.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

constexpr std::array<std::string_view, 13> kTypeNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                         "int32",  "float32", "bool",   "string", "array",
                                                         "uint64", "int64",   "float64"};

// GGML's names of tensor types, by number; "" where there never was one.
constexpr std::array<std::string_view, 42> kTensorTypeNames = {
    "F32",        "F16",        "Q4_0",       "Q4_1",  "Q4_2",     "Q4_3",     "Q5_0",     "Q5_1",    "Q8_0",
    "Q8_1",       "Q2_K",       "Q3_K",       "Q4_K",  "Q5_K",     "Q6_K",     "Q8_K",     "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS",    "IQ1_S",      "IQ4_NL",     "IQ3_S", "IQ2_S",    "IQ4_XS",   "I8",       "I16",     "I32",
    "I64",        "F64",        "IQ1_M",      "BF16",  "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0",
    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4",    "Q1_0"};

constexpr std::array<DType, 11> kSupportedTypes = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                                   DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                                   DType::kQ4K,  DType::kQ5K,  DType::kQ6K};

// Bytes of one element of a fixed size; 0 for strings and arrays.
uint64_t TypeBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

// Reads a part of the file from front to back. Messages name neither file nor key.
class Cursor {
 public:
  Cursor(const ReadOnlyFile& file, uint64_t begin, uint64_t end)
      : file_(file), position_(begin), end_(end), buffer_(std::min<uint64_t>(kBufferBytes, end - begin)) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return end_ - position_; }

  // Whether so many elements of at least so many bytes can follow.
  absl::Status Expect(uint64_t count, uint64_t min_bytes, std::string_view what) const {
    if (count <= left() / min_bytes) return absl::OkStatus();
    if (end_ < file_.size() && count <= (file_.size() - position_) / min_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(ToAbsl(what), " ", count, " at byte ", position_,
                                                       " makes the header longer than the limit of ", end_, " bytes"));
    }
    return absl::DataLossError(absl::StrCat(ToAbsl(what), " ", count, " at byte ", position_,
                                            " reaches beyond the file's ", file_.size(), " bytes"));
  }

  absl::Status Take(std::span<std::byte> out) {
    SCION_RETURN_IF_ERROR(Expect(out.size(), 1, "length"));
    while (!out.empty()) {
      if (out.size() >= buffer_.size() && position_ == buffer_end_) {
        SCION_RETURN_IF_ERROR(file_.Read(position_, out));
        Seek(position_ + out.size());
        return absl::OkStatus();
      }
      if (position_ == buffer_end_) {
        const std::span<std::byte> part(buffer_.data(), std::min<uint64_t>(buffer_.size(), left()));
        SCION_RETURN_IF_ERROR(file_.Read(position_, part));
        buffer_end_ = position_ + part.size();
        buffer_begin_ = position_;
      }
      const size_t n = std::min<uint64_t>(out.size(), buffer_end_ - position_);
      std::memcpy(out.data(), buffer_.data() + (position_ - buffer_begin_), n);
      position_ += n;
      out = out.subspan(n);
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::StatusOr<T> Number() {
    T value;
    SCION_RETURN_IF_ERROR(Take(std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  absl::Status Skip(uint64_t bytes) {
    SCION_RETURN_IF_ERROR(Expect(bytes, 1, "length"));
    Seek(position_ + bytes);
    return absl::OkStatus();
  }

  // A length and so many bytes.
  absl::StatusOr<uint64_t> StringLength(uint64_t max_bytes) {
    SCION_ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>());
    SCION_RETURN_IF_ERROR(Expect(length, 1, "string of length"));
    if (length > max_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("string of ", length, " bytes at byte ", position_, ", more than the limit of ", max_bytes));
    }
    return length;
  }
  absl::StatusOr<std::string> String(uint64_t max_bytes) {
    SCION_ASSIGN_OR_RETURN(const uint64_t length, StringLength(max_bytes));
    std::string text(length, '\0');
    SCION_RETURN_IF_ERROR(Take(std::as_writable_bytes(std::span(text))));
    return text;
  }

 private:
  static constexpr uint64_t kBufferBytes = 64 << 10;

  void Seek(uint64_t position) {
    position_ = position;
    if (position_ > buffer_end_) buffer_begin_ = buffer_end_ = position_;
  }

  const ReadOnlyFile& file_;
  uint64_t position_;
  uint64_t end_;
  std::vector<std::byte> buffer_;
  uint64_t buffer_begin_ = position_, buffer_end_ = position_;  // what of the file is in the buffer
};

class HeaderReader {
 public:
  HeaderReader(const ReadOnlyFile& file, std::string_view file_name)
      : file_(file), file_name_(file_name), cursor_(file, 0, std::min(file.size(), kMaxGgufHeaderBytes)) {}

  absl::StatusOr<GgufHeader> Read() {
    header_.metadata = GgufMetadata(file_name_);
    SCION_RETURN_IF_ERROR(In("header", ReadFront()));
    for (uint64_t i = 0; i < num_keys_; ++i) SCION_RETURN_IF_ERROR(ReadKey(i));
    SCION_RETURN_IF_ERROR(ReadAlignment());
    header_.tensors.reserve(num_tensors_);
    for (uint64_t i = 0; i < num_tensors_; ++i) SCION_RETURN_IF_ERROR(ReadTensor(i));
    names_ = {};
    SCION_RETURN_IF_ERROR(PlaceTensors());
    return std::move(header_);
  }

 private:
  absl::Status In(std::string_view context, const absl::Status& status) const {
    return Annotate(Annotate(status, context), file_name_);
  }

  absl::Status ReadFront() {
    std::array<char, 4> magic = {};
    SCION_RETURN_IF_ERROR(cursor_.Take(std::as_writable_bytes(std::span(magic))));
    if (std::string_view(magic.data(), magic.size()) != kGgufMagic) {
      return absl::DataLossError(absl::StrCat("begins with ", Quoted(std::string_view(magic.data(), 4)), ", not GGUF"));
    }
    SCION_ASSIGN_OR_RETURN(header_.version, cursor_.Number<uint32_t>());
    if (header_.version != 0 && (header_.version & 0xffff) == 0) {
      return absl::UnimplementedError("a big-endian file; only little-endian ones are supported");
    }
    if (header_.version != 2 && header_.version != 3) {
      return absl::UnimplementedError(
          absl::StrCat("GGUF version ", header_.version, "; versions 2 and 3 are supported"));
    }
    SCION_ASSIGN_OR_RETURN(num_tensors_, cursor_.Number<uint64_t>());
    SCION_ASSIGN_OR_RETURN(num_keys_, cursor_.Number<uint64_t>());
    SCION_RETURN_IF_ERROR(cursor_.Expect(num_tensors_, kMinTensorBytes, "tensor count"));
    SCION_RETURN_IF_ERROR(cursor_.Expect(num_keys_, kMinKeyBytes, "key count"));
    if (num_tensors_ > kMaxTensors) {
      return absl::ResourceExhaustedError(absl::StrCat(num_tensors_, " tensors, more than the limit of ", kMaxTensors));
    }
    if (num_keys_ > kMaxGgufKeys) {
      return absl::ResourceExhaustedError(absl::StrCat(num_keys_, " keys, more than the limit of ", kMaxGgufKeys));
    }
    return absl::OkStatus();
  }

  absl::Status ReadKey(uint64_t index) {
    absl::StatusOr<std::string> key = cursor_.String(kMaxGgufKeyBytes);
    if (!key.ok()) return In(absl::StrCat("key ", index), key.status());
    if (key->empty()) return In(absl::StrCat("key ", index), absl::DataLossError("is empty"));
    const std::string context = absl::StrCat("key ", Quoted(*key));
    absl::StatusOr<GgufValue> value = ReadValue();
    if (!value.ok()) return In(context, value.status());
    if (!header_.metadata.Insert(*std::move(key), *std::move(value))) {
      return In(context, absl::DataLossError("comes twice"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GgufType> ReadType() {
    SCION_ASSIGN_OR_RETURN(const uint32_t type, cursor_.Number<uint32_t>());
    if (type >= kTypeNames.size()) return absl::DataLossError(absl::StrCat("unknown value type ", type));
    return static_cast<GgufType>(type);
  }

  template <typename T, typename Wide>
  absl::StatusOr<GgufValue> Widened() {
    SCION_ASSIGN_OR_RETURN(const T value, cursor_.Number<T>());
    return GgufValue(static_cast<Wide>(value));
  }

  absl::StatusOr<GgufValue> ReadValue() {
    SCION_ASSIGN_OR_RETURN(const GgufType type, ReadType());
    switch (type) {
      case GgufType::kUint8:
        return Widened<uint8_t, uint64_t>();
      case GgufType::kInt8:
        return Widened<int8_t, int64_t>();
      case GgufType::kUint16:
        return Widened<uint16_t, uint64_t>();
      case GgufType::kInt16:
        return Widened<int16_t, int64_t>();
      case GgufType::kUint32:
        return Widened<uint32_t, uint64_t>();
      case GgufType::kInt32:
        return Widened<int32_t, int64_t>();
      case GgufType::kFloat32:
        return Widened<float, double>();
      case GgufType::kUint64:
        return Widened<uint64_t, uint64_t>();
      case GgufType::kInt64:
        return Widened<int64_t, int64_t>();
      case GgufType::kFloat64:
        return Widened<double, double>();
      case GgufType::kBool: {
        SCION_ASSIGN_OR_RETURN(const uint8_t value, cursor_.Number<uint8_t>());
        if (value > 1) return absl::DataLossError(absl::StrCat("the bool is ", int{value}, ", neither 0 nor 1"));
        return GgufValue(value == 1);
      }
      case GgufType::kString: {
        SCION_ASSIGN_OR_RETURN(std::string value, cursor_.String(kMaxGgufStringBytes));
        return GgufValue(std::move(value));
      }
      case GgufType::kArray: {
        SCION_ASSIGN_OR_RETURN(const GgufArray value, ReadArray());
        return GgufValue(value);
      }
    }
    return absl::DataLossError("unknown value type");
  }

  absl::StatusOr<GgufArray> ReadArray() {
    GgufArray array = {};
    SCION_ASSIGN_OR_RETURN(array.type, ReadType());
    if (array.type == GgufType::kArray) return absl::UnimplementedError("an array of arrays, which is not supported");
    SCION_ASSIGN_OR_RETURN(array.count, cursor_.Number<uint64_t>());
    array.offset = cursor_.position();
    if (const uint64_t bytes = TypeBytes(array.type); bytes != 0) {
      SCION_RETURN_IF_ERROR(cursor_.Expect(array.count, bytes, "array of length"));
      SCION_RETURN_IF_ERROR(cursor_.Skip(array.count * bytes));
    } else {
      SCION_RETURN_IF_ERROR(cursor_.Expect(array.count, sizeof(uint64_t), "array of length"));
      for (uint64_t i = 0; i < array.count; ++i) {
        absl::StatusOr<uint64_t> length = cursor_.StringLength(kMaxGgufStringBytes);
        if (!length.ok()) return Annotate(length.status(), absl::StrCat("element ", i));
        SCION_RETURN_IF_ERROR(cursor_.Skip(*length));
      }
    }
    array.bytes = cursor_.position() - array.offset;
    return array;
  }

  absl::Status ReadAlignment() {
    constexpr std::string_view kKey = "general.alignment";
    const absl::StatusOr<std::optional<int64_t>> value =
        header_.metadata.GetOptionalInt(kKey, 8, static_cast<int64_t>(kMaxGgufAlignment));
    if (!value.ok()) return absl::DataLossError(value.status().message());
    alignment_ = static_cast<uint64_t>(value->value_or(kDefaultAlignment));
    if (!std::has_single_bit(alignment_)) {
      return absl::DataLossError(
          header_.metadata.Message(kKey, absl::StrCat("is ", alignment_, ", not a power of two")));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensor(uint64_t index) {
    absl::StatusOr<std::string> name = cursor_.String(kMaxGgufStringBytes);
    if (!name.ok()) return In(absl::StrCat("tensor ", index), name.status());
    if (name->empty()) return In(absl::StrCat("tensor ", index), absl::DataLossError("has no name"));
    const std::string context = absl::StrCat("tensor ", Quoted(*name));
    if (name->size() > kMaxGgufTensorNameBytes) {
      return In(context, absl::DataLossError(absl::StrCat("name is longer than ", kMaxGgufTensorNameBytes, " bytes")));
    }
    if (!names_.insert(*name).second) return In(context, absl::DataLossError("comes twice"));
    TensorInfo tensor{.name = *std::move(name), .dtype = DType::kF32, .shape = {}, .file = 0, .offset = 0, .bytes = 0};
    SCION_RETURN_IF_ERROR(In(context, ReadExtent(tensor)));
    header_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // Shape, type, bytes; the offset still counts from the start of the data.
  absl::Status ReadExtent(TensorInfo& tensor) {
    SCION_ASSIGN_OR_RETURN(const uint32_t num_dims, cursor_.Number<uint32_t>());
    if (num_dims < 1 || num_dims > kMaxGgufTensorDims) {
      return absl::DataLossError(absl::StrCat(num_dims, " dimensions, outside [1, ", kMaxGgufTensorDims, "]"));
    }
    std::array<uint64_t, kMaxGgufTensorDims> dims = {};
    SCION_RETURN_IF_ERROR(cursor_.Take(std::as_writable_bytes(std::span(dims).first(num_dims))));
    SCION_ASSIGN_OR_RETURN(const uint32_t type, cursor_.Number<uint32_t>());
    SCION_ASSIGN_OR_RETURN(tensor.offset, cursor_.Number<uint64_t>());
    SCION_ASSIGN_OR_RETURN(tensor.dtype, TensorType(type));

    const uint64_t block = static_cast<uint64_t>(DTypeBlockElements(tensor.dtype));
    if (dims[0] % block != 0) {
      return absl::DataLossError(absl::StrCat("a row of ", dims[0], " elements is not a multiple of ",
                                              ToAbsl(DTypeName(tensor.dtype)), "'s block of ", block));
    }
    uint64_t bytes = DTypeBytes(tensor.dtype);
    uint64_t elements = 1;
    for (uint32_t d = 0; d < num_dims; ++d) {
      if (dims[d] == 0) return absl::DataLossError(absl::StrCat("dimension ", d, " is 0"));
      if (__builtin_mul_overflow(bytes, d == 0 ? dims[d] / block : dims[d], &bytes) ||
          __builtin_mul_overflow(elements, dims[d], &elements) || elements > INT64_MAX || bytes > INT64_MAX) {
        return absl::DataLossError("shape overflows 63 bits");
      }
    }
    tensor.bytes = bytes;
    tensor.shape.assign(num_dims, 0);
    for (uint32_t d = 0; d < num_dims; ++d) tensor.shape[num_dims - 1 - d] = static_cast<int64_t>(dims[d]);
    return absl::OkStatus();
  }

  static absl::StatusOr<DType> TensorType(uint32_t type) {
    if (type >= kTensorTypeNames.size()) return absl::DataLossError(absl::StrCat("unknown type ", type));
    const std::string_view name = kTensorTypeNames[type];
    for (DType dtype : kSupportedTypes) {
      if (DTypeName(dtype) == name) return dtype;
    }
    return absl::UnimplementedError(absl::StrCat("type ", ToAbsl(name), " is not supported"));
  }

  // From offsets in the data to offsets in the file; sorted, inside, aligned, side by side.
  absl::Status PlaceTensors() {
    std::vector<TensorInfo>& tensors = header_.tensors;
    if (tensors.empty()) return absl::OkStatus();
    const uint64_t data_offset = AlignUp(cursor_.position(), alignment_);
    if (data_offset > file_.size()) {
      return In("header", absl::DataLossError(absl::StrCat("the data begins at byte ", data_offset,
                                                           ", beyond the file's ", file_.size(), " bytes")));
    }
    const uint64_t data_bytes = file_.size() - data_offset;
    const auto damaged = [&](const TensorInfo& tensor, std::string_view message) {
      return In(absl::StrCat("tensor ", Quoted(tensor.name)), absl::DataLossError(ToAbsl(message)));
    };
    for (const TensorInfo& tensor : tensors) {
      if (tensor.offset % alignment_ != 0) {
        return damaged(tensor,
                       absl::StrCat("offset ", tensor.offset, " is not a multiple of the alignment ", alignment_));
      }
      if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset) {
        return damaged(tensor, absl::StrCat("bytes [", tensor.offset, ", +", tensor.bytes, ") reach beyond the file's ",
                                            data_bytes, " bytes of data"));
      }
    }
    std::sort(tensors.begin(), tensors.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    const TensorInfo* previous = nullptr;
    for (TensorInfo& tensor : tensors) {
      if (tensor.offset < end) return damaged(tensor, absl::StrCat("overlaps tensor ", Quoted(previous->name)));
      if (tensor.offset - end >= alignment_) {
        return damaged(tensor, absl::StrCat("a hole of ", tensor.offset - end, " bytes before it"));
      }
      end = tensor.offset + tensor.bytes;
      tensor.offset += data_offset;
      previous = &tensor;
    }
    if (data_bytes - end >= alignment_) {
      return damaged(*previous, absl::StrCat(data_bytes - end, " bytes after it belong to no tensor"));
    }
    return absl::OkStatus();
  }

  const ReadOnlyFile& file_;
  std::string file_name_;
  Cursor cursor_;
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  absl::flat_hash_set<std::string> names_;
  GgufHeader header_;
};

absl::Status WrongArray(const GgufMetadata& metadata, std::string_view key, const GgufArray& array,
                        std::string_view needed) {
  return absl::DataLossError(metadata.Message(key, absl::StrCat("an array of ", ToAbsl(GgufTypeName(array.type)),
                                                                ", but one of ", ToAbsl(needed), " is needed")));
}

// An array of numbers of 4 bytes.
template <typename T>
absl::StatusOr<std::vector<T>> ReadNumbers(const ReadOnlyFile& file, const GgufMetadata& metadata, std::string_view key,
                                           const GgufArray& array) {
  std::vector<T> values(array.count);
  absl::Status status = file.Read(array.offset, std::as_writable_bytes(std::span(values)));
  if (!status.ok()) return absl::DataLossError(metadata.Message(key, std::string(status.message())));
  return values;
}

std::string_view ValueTypeName(const GgufValue& value) {
  constexpr std::array<std::string_view, 6> kNames = {
      "an unsigned integer", "an integer", "a float", "a bool", "a string", "an array"};
  return kNames[value.index()];
}

}  // namespace

std::string_view GgufTypeName(GgufType type) { return kTypeNames[static_cast<size_t>(type)]; }

const GgufValue* GgufMetadata::Find(std::string_view key) const {
  const auto it = values_.find(ToAbsl(key));
  return it == values_.end() ? nullptr : &it->second;
}

bool GgufMetadata::Insert(std::string key, GgufValue value) {
  return values_.try_emplace(std::move(key), std::move(value)).second;
}

std::string GgufMetadata::Message(std::string_view key, std::string_view message) const {
  return absl::StrCat(file_name_, ": key ", Quoted(key), ": ", ToAbsl(message));
}

absl::StatusOr<std::optional<int64_t>> GgufMetadata::GetOptionalInt(std::string_view key, int64_t min,
                                                                    int64_t max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const uint64_t* as_unsigned = std::get_if<uint64_t>(value);
  const int64_t* as_signed = std::get_if<int64_t>(value);
  if (as_unsigned == nullptr && as_signed == nullptr) {
    return absl::InvalidArgumentError(
        Message(key, absl::StrCat("is ", ToAbsl(ValueTypeName(*value)), ", but must be an integer")));
  }
  const bool is_inside = as_unsigned != nullptr
                             ? std::cmp_greater_equal(*as_unsigned, min) && std::cmp_less_equal(*as_unsigned, max)
                             : *as_signed >= min && *as_signed <= max;
  if (!is_inside) {
    const std::string number = as_unsigned != nullptr ? absl::StrCat(*as_unsigned) : absl::StrCat(*as_signed);
    return absl::InvalidArgumentError(Message(key, absl::StrCat("is ", number, ", outside [", min, ", ", max, "]")));
  }
  return as_unsigned != nullptr ? static_cast<int64_t>(*as_unsigned) : *as_signed;
}

absl::StatusOr<int64_t> GgufMetadata::GetInt(std::string_view key, int64_t min, int64_t max) const {
  SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> value, GetOptionalInt(key, min, max));
  if (!value.has_value()) return absl::InvalidArgumentError(Message(key, "is missing"));
  return *value;
}

absl::StatusOr<std::optional<double>> GgufMetadata::GetOptionalNumber(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const uint64_t* number = std::get_if<uint64_t>(value)) return static_cast<double>(*number);
  if (const int64_t* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
  const double* number = std::get_if<double>(value);
  if (number == nullptr) {
    return absl::InvalidArgumentError(
        Message(key, absl::StrCat("is ", ToAbsl(ValueTypeName(*value)), ", but must be a number")));
  }
  if (!std::isfinite(*number)) return absl::InvalidArgumentError(Message(key, "is not finite"));
  return *number;
}

absl::StatusOr<std::optional<bool>> GgufMetadata::GetOptionalBool(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const bool* flag = std::get_if<bool>(value)) return *flag;
  return absl::InvalidArgumentError(
      Message(key, absl::StrCat("is ", ToAbsl(ValueTypeName(*value)), ", but must be a bool")));
}

absl::StatusOr<std::optional<std::string>> GgufMetadata::GetOptionalString(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const std::string* text = std::get_if<std::string>(value)) return *text;
  return absl::InvalidArgumentError(
      Message(key, absl::StrCat("is ", ToAbsl(ValueTypeName(*value)), ", but must be a string")));
}

absl::StatusOr<std::string> GgufMetadata::GetString(std::string_view key) const {
  SCION_ASSIGN_OR_RETURN(std::optional<std::string> value, GetOptionalString(key));
  if (!value.has_value()) return absl::InvalidArgumentError(Message(key, "is missing"));
  return *std::move(value);
}

absl::StatusOr<std::optional<GgufArray>> GgufMetadata::GetOptionalArray(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const GgufArray* array = std::get_if<GgufArray>(value)) return *array;
  return absl::InvalidArgumentError(
      Message(key, absl::StrCat("is ", ToAbsl(ValueTypeName(*value)), ", but must be an array")));
}

absl::StatusOr<bool> HasGgufMagic(const ReadOnlyFile& file) {
  std::array<char, 4> magic = {};
  if (file.size() < magic.size()) return false;
  SCION_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(magic))));
  return std::string_view(magic.data(), magic.size()) == kGgufMagic;
}

absl::StatusOr<GgufHeader> ReadGgufHeader(const ReadOnlyFile& file, std::string_view file_name) {
  return HeaderReader(file, file_name).Read();
}

absl::StatusOr<std::vector<std::string>> ReadGgufStrings(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                         std::string_view key, const GgufArray& array) {
  if (array.type != GgufType::kString) return WrongArray(metadata, key, array, "string");
  if (array.count > kMaxGgufArrayStrings) {
    return absl::ResourceExhaustedError(
        metadata.Message(key, absl::StrCat(array.count, " strings, more than the limit of ", kMaxGgufArrayStrings)));
  }
  Cursor cursor(file, array.offset, array.offset + array.bytes);
  std::vector<std::string> strings;
  strings.reserve(array.count);
  for (uint64_t i = 0; i < array.count; ++i) {
    absl::StatusOr<std::string> text = cursor.String(kMaxGgufStringBytes);
    if (!text.ok()) return Annotate(text.status(), metadata.Message(key, absl::StrCat("element ", i)));
    strings.push_back(*std::move(text));
  }
  return strings;
}

absl::StatusOr<std::vector<float>> ReadGgufFloats(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                  std::string_view key, const GgufArray& array) {
  if (array.type != GgufType::kFloat32) return WrongArray(metadata, key, array, "float32");
  return ReadNumbers<float>(file, metadata, key, array);
}

absl::StatusOr<std::vector<int32_t>> ReadGgufInt32s(const ReadOnlyFile& file, const GgufMetadata& metadata,
                                                    std::string_view key, const GgufArray& array) {
  if (array.type != GgufType::kInt32) return WrongArray(metadata, key, array, "int32");
  return ReadNumbers<int32_t>(file, metadata, key, array);
}

}  // namespace scion
