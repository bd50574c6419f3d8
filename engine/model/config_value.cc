#include "engine/model/config_value.h"

#include <optional>
#include <string>

#include "engine/base/status.h"

namespace scion {

absl::StatusOr<int> GetSize(const Json& config, std::string_view key, int max) {
  SCION_ASSIGN_OR_RETURN(const int64_t value, GetInt(config, key, 1, max));
  return static_cast<int>(value);
}

absl::StatusOr<int> GetSizeOr(const Json& config, std::string_view key, int max, int otherwise) {
  SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> value, GetOptionalInt(config, key, 1, max));
  return static_cast<int>(value.value_or(otherwise));
}

absl::Status RefuseFeature(const Json& config, std::string_view key) {
  const Json* value = FindMember(config, key);
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(Quoted(key), " is set, which this engine does not support"));
}

absl::Status AllowOnly(const Json& object, std::string_view key, std::string_view supported) {
  const Json* value = FindMember(object, key);
  if (value == nullptr || (value->is_string() && value->get_ref<const std::string&>() == supported)) {
    return absl::OkStatus();
  }
  if (!value->is_string()) return absl::InvalidArgumentError(absl::StrCat(Quoted(key), " must be a string"));
  return absl::UnimplementedError(absl::StrCat(Quoted(key), " is ", Quoted(value->get_ref<const std::string&>()),
                                               "; only ", Quoted(supported), " is supported"));
}

}  // namespace scion
