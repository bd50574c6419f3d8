// A socket that says exactly what a test wants, and an HTTP response as it came.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace scion {

struct RawResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
};

class RawClient {
 public:
  // Connects to the loopback. receive_buffer_bytes: 0 for the system's default.
  explicit RawClient(int port, int receive_buffer_bytes = 0);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  bool Send(std::string_view data);
  // Waits (at most ten seconds) until what came contains `text`, and removes it up to there. False: the end came first.
  bool ReadUntil(std::string_view text, std::string* before = nullptr);
  // What has come and will come until the server closes.
  std::string ReadToEnd();
  // One response with a Content-Length or chunks. Nothing if the connection ends before it is whole.
  std::optional<RawResponse> ReadResponse(bool has_body = true);
  // True if the server has closed, or does so within ten seconds; reads nothing more.
  bool IsClosedByServer();

  void CloseWithFin();
  void CloseWithReset();

 private:
  bool Fill();

  int fd_ = -1;
  std::string received_;
};

// "POST path" with a JSON body, and "GET path".
std::string PostText(std::string_view path, std::string_view body, std::string_view more_headers = "");
std::string GetText(std::string_view path, std::string_view more_headers = "");

// One request on a connection of its own.
RawResponse Post(int port, std::string_view path, std::string_view body, std::string_view more_headers = "");
RawResponse Get(int port, std::string_view path);

// A member of the body's error object, {"error": {...}}: strings as they are, others as JSON.
std::string ErrorOf(const RawResponse& response, const char* member);

}  // namespace scion
