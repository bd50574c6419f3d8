// The JSON body of a request, and its members by name and kind.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "server/request_error.h"

namespace scion {

// InvalidArgument: not JSON, not an object, too deep, too many values.
inline absl::StatusOr<Json> ParseBody(std::string_view body) {
  // Bytes are bounded by the transport. A list of token ids has many values.
  constexpr JsonLimits kLimits = {.max_bytes = uint64_t{64} << 20, .max_depth = 32, .max_values = 1 << 20};
  absl::StatusOr<Json> json = ParseJson(body, "the request body", kLimits);
  // Too many values is the client's mistake, not a shortage here.
  if (!json.ok()) return absl::InvalidArgumentError(json.status().message());
  if (!json->is_object()) return absl::InvalidArgumentError("the request body must be a JSON object");
  return json;
}

// Reads members one after another; the first error stays, and names its parameter.
class BodyReader {
 public:
  explicit BodyReader(const Json& body) : body_(body) {}

  const absl::Status& status() const { return status_; }
  const Json* Find(std::string_view key) const { return FindMember(body_, key); }
  void Fail(std::string_view key, std::string_view message) {
    if (status_.ok()) status_ = InvalidParameter(key, message);
  }

  std::string String(std::string_view key) {
    absl::StatusOr<std::string> value = GetStringOr(body_, key, "");
    if (value.ok()) return *std::move(value);
    if (status_.ok()) status_ = WithParameter(value.status(), key);
    return {};
  }
  bool Bool(std::string_view key) { return Take(key, GetOptionalBool(body_, key)).value_or(false); }
  std::optional<double> Number(std::string_view key) { return Take(key, GetOptionalNumber(body_, key)); }
  std::optional<int64_t> Int(std::string_view key) {
    return Take(key,
                GetOptionalInt(body_, key, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()));
  }

  std::vector<int32_t> TokenIds(std::string_view key, const Json& array) {
    std::vector<int32_t> ids;
    ids.reserve(array.size());
    for (const Json& value : array) {
      const auto id = AsInt(value, key, 0, std::numeric_limits<int32_t>::max());
      if (!id.ok()) {
        Fail(key, absl::StrCat(ToAbsl(key), " must hold token ids: ", id.status().message()));
        return {};
      }
      ids.push_back(static_cast<int32_t>(*id));
    }
    return ids;
  }

 private:
  template <typename T>
  std::optional<T> Take(std::string_view key, absl::StatusOr<std::optional<T>> value) {
    if (value.ok()) return *std::move(value);
    if (status_.ok()) status_ = WithParameter(value.status(), key);
    return std::nullopt;
  }

  const Json& body_;
  absl::Status status_;
};

}  // namespace scion
