// HTTP/1.1 on a listening socket: a few threads, one strand per connection, limits on whatever a stranger can make
// grow.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/http_message.h"

namespace scion {

struct HttpLimits {
  int max_connections = 1024;                         // more are answered 503 and closed
  size_t max_header_bytes = size_t{16} << 10;         // 431
  size_t max_body_bytes = size_t{4} << 20;            // 413
  size_t max_all_bodies_bytes = size_t{256} << 20;    // of all requests that are being received; 503
  absl::Duration header_timeout = absl::Seconds(10);  // from the first byte to the end of the headers; 408
  absl::Duration body_timeout = absl::Seconds(60);    // 408
  absl::Duration idle_timeout = absl::Seconds(75);    // between requests
  absl::Duration write_timeout =
      absl::Seconds(30);  // of one write of at most 64 KB: a client that takes longer is dropped
};

class HttpServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";  // an address
    int port = 0;                    // 0: any free one
    int num_threads = 2;
    HttpLimits limits;
    std::atomic<int>* connections = nullptr;  // not owned, may be null: a gauge to keep
  };

  // Listens from the return on. InvalidArgument: not an address. AlreadyExists: the port is in use. PermissionDenied.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const Options& options, HttpService& service);
  virtual ~HttpServer() = default;

  virtual int port() const = 0;
  // From now on every response closes its connection.
  virtual void StartDraining() = 0;
  // Requests that are being answered.
  virtual int active_requests() const = 0;
  // Closes all connections, which cancels their requests, and joins the threads. `service` is not called any more, but
  // answers that are already being destroyed may still call their notify functions: keep the object until they are.
  virtual void Stop() = 0;
};

}  // namespace scion
