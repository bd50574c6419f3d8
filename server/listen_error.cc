#include "server/listen_error.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "engine/base/status.h"

namespace scion {

absl::Status NotAnAddress(std::string_view host) {
  return absl::InvalidArgumentError(absl::StrCat(
      Quoted(host), " is not an IP address; --host takes one, such as 127.0.0.1, ::1, 0.0.0.0 or :: (all)"));
}

absl::Status ListenError(std::string_view what, std::string_view host, int port, int error_number) {
  const std::string option = absl::StrCat("--", absl::AsciiStrToLower(ToAbsl(what)), "-port");
  const std::string where = absl::StrCat(ToAbsl(what), " cannot listen on ", ToAbsl(host), " port ", port);
  if (error_number == EADDRINUSE) {
    return absl::AlreadyExistsError(absl::StrCat(where,
                                                 ": the port is in use; stop the program that uses it, or choose ",
                                                 "another port with ", option, " (0: any free one)"));
  }
  if (error_number == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat(where, ": not allowed; choose a port above 1023 with ", option));
  }
  if (error_number == EADDRNOTAVAIL) {
    return absl::UnavailableError(absl::StrCat(where, ": this machine has no such address (--host)"));
  }
  return absl::UnavailableError(absl::StrCat(where, ": ", std::strerror(error_number)));
}

absl::Status ProbeListen(std::string_view what, const std::string& host, int port) {
  sockaddr_in v4 = {};
  sockaddr_in6 v6 = {};
  const sockaddr* address = nullptr;
  socklen_t size = 0;
  if (inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    address = reinterpret_cast<const sockaddr*>(&v4);
    size = sizeof(v4);
  } else if (inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(port));
    address = reinterpret_cast<const sockaddr*>(&v6);
    size = sizeof(v6);
  } else {
    return NotAnAddress(host);
  }
  const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return ListenError(what, host, port, errno);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const int error = bind(fd, address, size) != 0 ? errno : 0;
  close(fd);
  return error == 0 ? absl::OkStatus() : ListenError(what, host, port, error);
}

}  // namespace scion
