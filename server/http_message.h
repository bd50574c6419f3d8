// What passes between the HTTP connection, which knows sockets, and the service behind it, which knows requests.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace scion {

struct HttpRequest {
  std::string method;
  std::string path;                            // without the query
  std::map<std::string, std::string> headers;  // names in lower case; of a header that comes twice, the first
  std::string body;

  std::string_view Header(const std::string& lower_case_name) const {
    const auto it = headers.find(lower_case_name);
    return it == headers.end() ? std::string_view() : std::string_view(it->second);
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers = {};  // besides type, length, date and connection
  std::string body = {};
  bool has_stream = false;  // the body is what TryBody gives
};

// The answer to one request, pulled by the connection: it asks for more when the client has taken what was written, so
// that nothing piles up for a slow reader. One thread at a time calls it. Destroying it, as happens when the client
// leaves, cancels the work behind it.
class HttpAnswer {
 public:
  virtual ~HttpAnswer() = default;
  // `notify` is called, from any thread, when there may be more after a Try function had nothing. It may also be called
  // once more while the answer is being destroyed, and must not block.
  virtual void SetNotify(std::function<void()> notify) = 0;
  // Nothing: not known yet. Not called again once it was known.
  virtual std::optional<HttpResponse> TryHead() = 0;

  enum class Body { kMore, kWait, kEnd };
  // Appends the next piece of a streamed body: kMore if there was one, kEnd if that (maybe empty) piece was the last.
  virtual Body TryBody(std::string& out) = 0;
};

// An answer that is known from the start.
class ReadyAnswer final : public HttpAnswer {
 public:
  explicit ReadyAnswer(HttpResponse response) : response_(std::move(response)) {}
  void SetNotify(std::function<void()>) override {}
  std::optional<HttpResponse> TryHead() override { return std::move(response_); }
  Body TryBody(std::string&) override { return Body::kEnd; }

 private:
  HttpResponse response_;
};

class HttpService {
 public:
  virtual ~HttpService() = default;
  // Must not block.
  virtual std::unique_ptr<HttpAnswer> Handle(HttpRequest request) = 0;
  // The body of a refusal that the connection makes by itself.
  virtual HttpResponse Refuse(int status, std::string_view message) = 0;
};

}  // namespace scion
