// Why a port cannot be listened on, in words that say what to do.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace scion {

absl::Status NotAnAddress(std::string_view host);

// `what` is "HTTP" or "gRPC". AlreadyExists: the port is in use. PermissionDenied, or Unavailable for the rest.
absl::Status ListenError(std::string_view what, std::string_view host, int port, int error_number);

// Tries to bind, and lets go again: for gRPC, which does not say why it could not.
absl::Status ProbeListen(std::string_view what, const std::string& host, int port);

}  // namespace scion
