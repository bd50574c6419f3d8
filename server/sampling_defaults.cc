#include "server/sampling_defaults.h"

#include <limits>
#include <string>
#include <system_error>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr char kFileName[] = "generation_config.json";
constexpr uint64_t kMaxFileBytes = 1 << 20;

absl::Status OutOfRange(std::string_view key, std::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat(kFileName, ": ", ToAbsl(key), " must be ", ToAbsl(range)));
}

}  // namespace

absl::StatusOr<SamplingDefaults> ParseSamplingDefaults(std::string_view generation_config_json) {
  SCION_ASSIGN_OR_RETURN(const Json config, ParseJson(generation_config_json, kFileName));
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(kFileName, ": must be an object"));
  SamplingDefaults defaults;
  SCION_ASSIGN_OR_RETURN(const auto temperature, GetOptionalNumber(config, "temperature"));
  SCION_ASSIGN_OR_RETURN(const auto top_k, GetOptionalInt(config, "top_k", 0, std::numeric_limits<int32_t>::max()));
  SCION_ASSIGN_OR_RETURN(const auto top_p, GetOptionalNumber(config, "top_p"));
  SCION_ASSIGN_OR_RETURN(const auto do_sample, GetOptionalBool(config, "do_sample"));
  if (temperature) {
    if (*temperature < 0 || *temperature > 2) return OutOfRange("temperature", "from 0 to 2");
    defaults.temperature = static_cast<float>(*temperature);
  }
  if (top_p) {
    if (*top_p <= 0 || *top_p > 1) return OutOfRange("top_p", "above 0 and at most 1");
    defaults.top_p = static_cast<float>(*top_p);
  }
  if (top_k) defaults.top_k = static_cast<int>(*top_k);
  if (do_sample && !*do_sample) defaults.temperature = 0;
  return defaults;
}

absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::filesystem::path& model_directory) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(model_directory, ignored)) return SamplingDefaults();  // a GGUF file has none
  const absl::StatusOr<std::string> text = ReadTextFile(model_directory / kFileName, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return SamplingDefaults();
  if (!text.ok()) return text.status();
  return ParseSamplingDefaults(*text);
}

}  // namespace scion
