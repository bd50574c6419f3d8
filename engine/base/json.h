// JSON from outside, with bounds: text size, nesting, number of values; a key that comes twice is an error. Nothing
// throws. The getters name the key and say what was expected.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

using Json = nlohmann::json;

struct JsonLimits {
  uint64_t max_bytes = uint64_t{1} << 20;
  int max_depth = 64;
  // Scalars, arrays and objects together. One value costs at most about 150 bytes of memory beside its text.
  int64_t max_values = int64_t{1} << 18;
};

// InvalidArgument: not JSON, a key twice, or nested too deep. ResourceExhausted: too long or too many values.
// Messages begin with `what` (a file's name) and give the byte offset.
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view what, const JsonLimits& limits = {});

// The member, or nullptr if it is absent or null. `object` must be an object.
const Json* FindMember(const Json& object, std::string_view key);

// InvalidArgument, naming the key, if the member is absent, null, of another type, or out of range.
absl::StatusOr<int64_t> GetInt(const Json& object, std::string_view key, int64_t min, int64_t max);
absl::StatusOr<double> GetNumber(const Json& object, std::string_view key);  // finite
absl::StatusOr<bool> GetBool(const Json& object, std::string_view key);
absl::StatusOr<std::string> GetString(const Json& object, std::string_view key);
absl::StatusOr<const Json*> GetArray(const Json& object, std::string_view key);
absl::StatusOr<const Json*> GetObject(const Json& object, std::string_view key);

// Likewise, but nothing (or `otherwise`) if the member is absent or null.
absl::StatusOr<std::optional<int64_t>> GetOptionalInt(const Json& object, std::string_view key, int64_t min,
                                                      int64_t max);
absl::StatusOr<std::optional<double>> GetOptionalNumber(const Json& object, std::string_view key);
absl::StatusOr<std::optional<bool>> GetOptionalBool(const Json& object, std::string_view key);
absl::StatusOr<std::string> GetStringOr(const Json& object, std::string_view key, std::string_view otherwise);

// An integer that is a value by itself; `what` names it in the message.
absl::StatusOr<int64_t> AsInt(const Json& value, std::string_view what, int64_t min, int64_t max);

}  // namespace scion
