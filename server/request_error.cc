#include "server/request_error.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/cord.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr char kParameterPayload[] = "scion/parameter";
constexpr char kCodePayload[] = "scion/code";

std::string Payload(const absl::Status& status, const char* type) {
  const auto payload = status.GetPayload(type);
  return payload ? std::string(*payload) : std::string();
}

const char* OpenAiErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    case 504:
      return "timeout_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

absl::Status WithParameter(absl::Status status, std::string_view parameter) {
  if (!status.ok()) status.SetPayload(kParameterPayload, absl::Cord(ToAbsl(parameter)));
  return status;
}

absl::Status WithErrorCode(absl::Status status, std::string_view code) {
  if (!status.ok()) status.SetPayload(kCodePayload, absl::Cord(ToAbsl(code)));
  return status;
}

absl::Status InvalidParameter(std::string_view parameter, std::string_view message) {
  return WithParameter(absl::InvalidArgumentError(ToAbsl(message)), parameter);
}

std::string ErrorParameter(const absl::Status& status) { return Payload(status, kParameterPayload); }
std::string ErrorCode(const absl::Status& status) { return Payload(status, kCodePayload); }

int HttpStatusCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string OpenAiErrorBody(const absl::Status& status) {
  const std::string parameter = ErrorParameter(status);
  const std::string code = ErrorCode(status);
  nlohmann::json error = {{"message", std::string(status.message())},
                          {"type", OpenAiErrorType(HttpStatusCode(status.code()))},
                          {"param", nullptr},
                          {"code", nullptr}};
  if (!parameter.empty()) error["param"] = parameter;
  if (!code.empty()) error["code"] = code;
  return nlohmann::json{{"error", std::move(error)}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace scion
