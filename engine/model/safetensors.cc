#include "engine/model/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr uint64_t kLengthBytes = 8;

// dtypes of the format that this engine has no use for.
constexpr std::array<std::string_view, 8> kForeignDTypes = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "U16",
                                                            "U32",     "U64",     "C64",     "F4"};

// Consumes the header's JSON as events, so that memory holds the tensors and nothing else.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(std::string_view file_name, uint64_t header_bytes, uint64_t data_bytes)
      : file_name_(file_name), data_offset_(kLengthBytes + header_bytes), data_bytes_(data_bytes) {}

  absl::Status TakeStatus() { return std::move(status_); }
  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected(absl::StrCat("the number ", absl::string_view(text).substr(0, 40)));
  }
  bool binary(binary_t&) override { return Unexpected("a binary value"); }

  bool number_integer(number_integer_t v) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return Unexpected("a number");
    return Fail(absl::StrCat(ToAbsl(PlaceName()), " contains the negative number ", v));
  }

  bool number_unsigned(number_unsigned_t v) override {
    if (place_ == Place::kShape) {
      if (tensor_.shape.size() >= kMaxTensorDims)
        return Fail(absl::StrCat("shape has more than ", kMaxTensorDims, " dimensions"));
      if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        return Fail(absl::StrCat("shape contains ", v, ", which overflows"));
      tensor_.shape.push_back(static_cast<int64_t>(v));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (num_offsets_ == 2) return Fail("data_offsets has more than two numbers");
      offsets_[num_offsets_++] = v;
      return true;
    }
    return Unexpected("a number");
  }

  bool string(string_t& v) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != Field::kDType) return Unexpected("a string");
    const std::optional<DType> dtype = ParseDType(v);
    if (!dtype.has_value()) {
      const bool foreign = std::find(kForeignDTypes.begin(), kForeignDTypes.end(), v) != kForeignDTypes.end();
      return Fail(absl::StrCat(foreign ? "unsupported dtype " : "unknown dtype ", Quoted(v)),
                  foreign ? absl::StatusCode::kUnimplemented : absl::StatusCode::kDataLoss);
    }
    tensor_.dtype = *dtype;
    return true;
  }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        if (in_metadata_) {
          place_ = Place::kMetadata;
          return true;
        }
        place_ = Place::kTensor;
        seen_ = {};
        num_offsets_ = 0;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    if (place_ == Place::kMetadata) {
      place_ = Place::kTop;
      return true;
    }
    if (place_ == Place::kTop) {
      place_ = Place::kEnd;
      return true;
    }
    place_ = Place::kTop;
    return FinishTensor();
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == Field::kDType) return Unexpected("an array");
    place_ = field_ == Field::kShape ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) return Fail("data_offsets must have two numbers");
    place_ = Place::kTensor;
    return true;
  }

  bool key(string_t& key) override {
    if (place_ == Place::kMetadata) {
      if (metadata_keys_.size() >= kMaxMetadataKeys) {
        return Fail(absl::StrCat("__metadata__ has more than ", kMaxMetadataKeys, " keys"),
                    absl::StatusCode::kResourceExhausted);
      }
      if (!metadata_keys_.insert(std::move(key)).second) return Fail("__metadata__ has a key twice");
      return true;
    }
    if (place_ == Place::kTensor) return TensorField(key);
    in_metadata_ = key == "__metadata__";
    tensor_ = TensorInfo{.name = std::move(key), .dtype = DType::kU8, .shape = {}, .file = 0, .offset = 0, .bytes = 0};
    if (tensor_.name.empty()) return Fail("a tensor without a name");
    if (tensor_.name.size() > kMaxTensorNameBytes)
      return Fail(absl::StrCat("name is longer than ", kMaxTensorNameBytes, " bytes"));
    if (names_.size() >= kMaxTensors) {
      return Fail(absl::StrCat("more than ", kMaxTensors, " tensors"), absl::StatusCode::kResourceExhausted);
    }
    if (!names_.insert(tensor_.name).second) return Fail("comes twice");
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("header is not JSON at byte ", position));
  }

 private:
  static constexpr size_t kMaxMetadataKeys = 1 << 14;
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };
  enum class Field { kDType, kShape, kOffsets };

  std::string_view PlaceName() const { return place_ == Place::kShape ? "shape" : "data_offsets"; }

  bool Fail(std::string_view message, absl::StatusCode code = absl::StatusCode::kDataLoss) {
    const std::string tensor = tensor_.name.empty() ? "" : absl::StrCat("tensor ", Quoted(tensor_.name), ": ");
    if (status_.ok()) status_ = absl::Status(code, absl::StrCat(ToAbsl(file_name_), ": ", tensor, ToAbsl(message)));
    return false;
  }

  bool Unexpected(std::string_view what) { return Fail(absl::StrCat("unexpected ", ToAbsl(what), " in the header")); }

  bool TensorField(std::string_view key) {
    if (key == "dtype") {
      field_ = Field::kDType;
    } else if (key == "shape") {
      field_ = Field::kShape;
    } else if (key == "data_offsets") {
      field_ = Field::kOffsets;
    } else {
      return Fail(absl::StrCat("unknown field ", Quoted(key)));
    }
    bool& seen = seen_[static_cast<size_t>(field_)];
    if (seen) return Fail(absl::StrCat(Quoted(key), " comes twice"));
    seen = true;
    return true;
  }

  bool FinishTensor() {
    if (!seen_[0]) return Fail("dtype is missing");
    if (!seen_[1]) return Fail("shape is missing");
    if (!seen_[2]) return Fail("data_offsets is missing");
    uint64_t bytes = DTypeBytes(tensor_.dtype);
    for (int64_t dim : tensor_.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return Fail("shape overflows 64 bits");
    }
    const auto [begin, end] = offsets_;
    if (begin > end) return Fail(absl::StrCat("data_offsets [", begin, ", ", end, "] run backwards"));
    if (end > data_bytes_) {
      return Fail(absl::StrCat("data_offsets [", begin, ", ", end, "] reach beyond the file's ", data_bytes_,
                               " bytes of data"));
    }
    if (end - begin != bytes) {
      return Fail(absl::StrCat("data_offsets [", begin, ", ", end, "] span ", end - begin,
                               " bytes, but shape and dtype need ", bytes));
    }
    tensor_.offset = data_offset_ + begin;
    tensor_.bytes = bytes;
    tensors_.push_back(std::move(tensor_));
    tensor_.name.clear();
    return true;
  }

  std::string_view file_name_;
  uint64_t data_offset_;
  uint64_t data_bytes_;
  absl::Status status_;
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_set<std::string> names_;
  absl::flat_hash_set<std::string> metadata_keys_;

  Place place_ = Place::kStart;
  bool in_metadata_ = false;
  Field field_ = Field::kDType;
  std::array<bool, 3> seen_ = {};
  TensorInfo tensor_ = {};
  std::array<uint64_t, 2> offsets_ = {};
  size_t num_offsets_ = 0;
};

// Sorted tensors must cover the data area exactly.
absl::Status CheckCoverage(const std::vector<TensorInfo>& tensors, uint64_t data_offset, uint64_t data_bytes,
                           std::string_view file_name) {
  uint64_t end = data_offset;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset < end) {
      return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": tensor ", Quoted(tensor.name), " overlaps tensor ",
                                              Quoted(previous->name)));
    }
    if (tensor.offset > end) {
      return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": a hole of ", tensor.offset - end,
                                              " bytes before tensor ", Quoted(tensor.name)));
    }
    end = tensor.offset + tensor.bytes;
    previous = &tensor;
  }
  if (end != data_offset + data_bytes) {
    return absl::DataLossError(
        absl::StrCat(ToAbsl(file_name), ": ", data_offset + data_bytes - end, " bytes after ",
                     previous == nullptr ? "the header" : absl::StrCat("the last tensor ", Quoted(previous->name)),
                     " belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint64_t> ParseSafetensorsHeaderLength(std::string_view prefix, uint64_t file_bytes,
                                                      std::string_view file_name) {
  if (prefix.size() < kLengthBytes || file_bytes < kLengthBytes) {
    return absl::DataLossError(
        absl::StrCat(ToAbsl(file_name), ": ", file_bytes, " bytes, too short for a safetensors file"));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{static_cast<unsigned char>(prefix[i])} << (8 * i);
  if (length > kMaxSafetensorsHeaderBytes) {
    return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header length ", length,
                                            " is more than the limit of ", kMaxSafetensorsHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes) {
    return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header length ", length,
                                            " reaches beyond the file's ", file_bytes, " bytes"));
  }
  if (length < 2)
    return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header length ", length, " is too short"));
  return length;
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes,
                                                               std::string_view file_name) {
  if (header.empty() || header[0] != '{') {
    return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header does not begin with '{'"));
  }
  // The parser takes a NUL for the end of the text and would never see what follows.
  if (const size_t nul = header.find('\0'); nul != header.npos) {
    return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header has a NUL at byte ", nul));
  }
  HeaderReader reader(file_name, header.size(), data_bytes);
  const bool parsed = Json::sax_parse(header.data(), header.data() + header.size(), &reader);
  SCION_RETURN_IF_ERROR(reader.TakeStatus());
  if (!parsed) return absl::DataLossError(absl::StrCat(ToAbsl(file_name), ": header is not JSON"));
  std::vector<TensorInfo> tensors = reader.TakeTensors();
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  SCION_RETURN_IF_ERROR(CheckCoverage(tensors, kLengthBytes + header.size(), data_bytes, file_name));
  return tensors;
}

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const ReadOnlyFile& file, std::string_view file_name) {
  std::string prefix(std::min(kLengthBytes, file.size()), '\0');
  SCION_RETURN_IF_ERROR(Annotate(file.Read(0, std::as_writable_bytes(std::span(prefix))), file_name));
  SCION_ASSIGN_OR_RETURN(const uint64_t header_bytes, ParseSafetensorsHeaderLength(prefix, file.size(), file_name));
  std::string header(header_bytes, '\0');
  SCION_RETURN_IF_ERROR(Annotate(file.Read(kLengthBytes, std::as_writable_bytes(std::span(header))), file_name));
  return ParseSafetensorsHeader(header, file.size() - kLengthBytes - header_bytes, file_name);
}

}  // namespace scion
