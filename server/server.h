// The whole daemon but for the command line: both transports in front of one engine, from start to drain.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/admission.h"
#include "server/grpc_server.h"
#include "server/http_server.h"

namespace scion {

struct ServerOptions {
  std::string version;
  HttpServer::Options http;
  GrpcServer::Options grpc;
  absl::Duration request_timeout = absl::Minutes(10);
  int worker_threads = 2;  // parse and tokenize
};

class Server {
 public:
  // Listens on both ports from the return on, alive but not ready. Errors as HttpServer::Start.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options);
  // As Stop.
  virtual ~Server() = default;

  virtual int http_port() const = 0;
  virtual int grpc_port() const = 0;

  // Ready: requests are taken from now on. Once only.
  virtual void Open(ServedModel model) = 0;
  // Not ready: new requests are refused, those that were admitted go on.
  virtual void StartDraining() = 0;
  // Requests, over either transport, whose answers are not yet written.
  virtual int requests_in_flight() const = 0;
  // Waits until no request is in flight and the engine is idle. False: there still were some after `timeout`.
  virtual bool WaitUntilIdle(absl::Duration timeout) = 0;
  // Cancels what is in flight and closes all connections.
  virtual void Stop() = 0;
};

}  // namespace scion
