// Errors of requests: which parameter is at fault, and how a status is said over HTTP.
//
// An absl::Status carries what both transports need; parameter and code travel as payloads, so that the layers between
// need not know of them.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace scion {

// InvalidArgument that names the request parameter.
absl::Status InvalidParameter(std::string_view parameter, std::string_view message);

// Adds the parameter, or the OpenAI error code ("model_not_found"), to an error.
absl::Status WithParameter(absl::Status status, std::string_view parameter);
absl::Status WithErrorCode(absl::Status status, std::string_view code);

// Empty if there is none.
std::string ErrorParameter(const absl::Status& status);
std::string ErrorCode(const absl::Status& status);

// 400, 404, 429, 503 ...; 500 for whatever has no meaning of its own.
int HttpStatusCode(absl::StatusCode code);

// {"error":{"message","type","param","code"}}, as OpenAI's clients expect. Valid UTF-8.
std::string OpenAiErrorBody(const absl::Status& status);

}  // namespace scion
