#include "tests/server/raw_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace scion {
namespace {

absl::string_view A(std::string_view s) { return absl::string_view(s.data(), s.size()); }

}  // namespace

RawClient::RawClient(int port, int receive_buffer_bytes) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  if (receive_buffer_bytes > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
  }
  const timeval patience = {.tv_sec = 10, .tv_usec = 0};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) ADD_FAILURE() << "connect";
}

RawClient::~RawClient() { CloseWithFin(); }

bool RawClient::Send(std::string_view data) {
  while (!data.empty()) {
    const ssize_t sent = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool RawClient::Fill() {
  char buffer[4096];
  const ssize_t got = recv(fd_, buffer, sizeof(buffer), 0);
  if (got < 0 && errno == EAGAIN) ADD_FAILURE() << "nothing came for ten seconds after: " << received_;
  if (got <= 0) return false;
  received_.append(buffer, static_cast<size_t>(got));
  return true;
}

bool RawClient::ReadUntil(std::string_view text, std::string* before) {
  size_t at;
  while ((at = received_.find(text)) == std::string::npos) {
    if (!Fill()) return false;
  }
  if (before != nullptr) *before = received_.substr(0, at);
  received_.erase(0, at + text.size());
  return true;
}

std::string RawClient::ReadToEnd() {
  while (Fill()) {
  }
  return std::exchange(received_, {});
}

std::optional<RawResponse> RawClient::ReadResponse(bool has_body) {
  RawResponse response;
  std::string line;
  if (!ReadUntil("\r\n", &line) || line.size() < 12) return std::nullopt;
  response.status = std::atoi(line.c_str() + 9);
  while (ReadUntil("\r\n", &line)) {
    if (line.empty()) break;
    const size_t colon = line.find(": ");
    response.headers[absl::AsciiStrToLower(A(line.substr(0, colon)))] = line.substr(colon + 2);
  }
  if (!has_body || response.status == 204) return response;
  if (response.headers.contains("content-length")) {
    const size_t size = std::strtoul(response.headers["content-length"].c_str(), nullptr, 10);
    while (received_.size() < size) {
      if (!Fill()) return std::nullopt;
    }
    response.body = received_.substr(0, size);
    received_.erase(0, size);
    return response;
  }
  for (;;) {
    if (!ReadUntil("\r\n", &line)) return std::nullopt;
    const size_t size = std::strtoul(line.c_str(), nullptr, 16);
    while (received_.size() < size + 2) {
      if (!Fill()) return std::nullopt;
    }
    response.body += received_.substr(0, size);
    received_.erase(0, size + 2);
    if (size == 0) return response;
  }
}

bool RawClient::IsClosedByServer() {
  char buffer[4096];
  ssize_t got;
  while ((got = recv(fd_, buffer, sizeof(buffer), 0)) > 0) {
  }
  return got == 0 || errno != EAGAIN;
}

void RawClient::CloseWithFin() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::CloseWithReset() {
  const linger hard = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  CloseWithFin();
}

std::string PostText(std::string_view path, std::string_view body, std::string_view more_headers) {
  return absl::StrCat("POST ", A(path), " HTTP/1.1\r\nHost: a\r\n", A(more_headers), "Content-Length: ", body.size(),
                      "\r\n\r\n", A(body));
}

std::string GetText(std::string_view path, std::string_view more_headers) {
  return absl::StrCat("GET ", A(path), " HTTP/1.1\r\nHost: a\r\n", A(more_headers), "\r\n");
}

RawResponse Post(int port, std::string_view path, std::string_view body, std::string_view more_headers) {
  RawClient client(port);
  client.Send(PostText(path, body, more_headers));
  return client.ReadResponse().value_or(RawResponse());
}

RawResponse Get(int port, std::string_view path) {
  RawClient client(port);
  client.Send(GetText(path));
  return client.ReadResponse().value_or(RawResponse());
}

std::string ErrorOf(const RawResponse& response, const char* member) {
  const nlohmann::json body = nlohmann::json::parse(response.body, nullptr, false);
  if (!body.is_object() || !body["error"].is_object()) return "no error object: " + response.body;
  const nlohmann::json& value = body["error"][member];
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace scion
