// A connection to a Scion server: one call per RPC of scion.v1.Inference, over gRPC without encryption.
//
// Messages are those of proto/scion/v1/inference.proto. Errors are the server's own, with the same code and text;
// where no server can be reached, Unavailable with a message that names the address and says what to try.
// Client and CancelSource are thread-safe; a GenerateStream belongs to one thread.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scion/v1/inference.pb.h"

namespace grpc {
class ClientContext;
}

namespace scion::client {

inline constexpr char kDefaultAddress[] = "127.0.0.1:8081";  // where moe-serve listens for gRPC

// Cancels calls from another thread, such as one that waits for Ctrl-C.
class CancelSource {
 public:
  // Cancels the calls in flight and every later one. True if a call was in flight.
  bool Cancel();
  bool cancelled() const;

 private:
  friend class ScopedCall;
  mutable std::mutex mutex_;
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> calls_;
};

struct CallOptions {
  absl::Duration timeout = absl::InfiniteDuration();
  CancelSource* cancel = nullptr;  // not owned; must outlive the call
};

// The answer to Generate, message by message. Destroying it before its end cancels the request.
class GenerateStream {
 public:
  virtual ~GenerateStream() = default;
  // Waits for the next message. False at the end, however it came about; then Finish() says how.
  virtual bool Next(v1::GenerateResponse* response) = 0;
  // OK only if a message with `finish` arrived: a stream that ends without one is Internal.
  virtual absl::Status Finish() = 0;
};

class Client {
 public:
  virtual ~Client() = default;

  // Waits until the server answers, at most `timeout`. `address` is HOST:PORT or [IPV6]:PORT; no proxy is used.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& address,
                                                         absl::Duration timeout = absl::Seconds(5));

  virtual const std::string& address() const = 0;
  virtual std::unique_ptr<GenerateStream> Generate(const v1::GenerateRequest& request, const CallOptions& options) = 0;
  virtual absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request, const CallOptions& options) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                        const CallOptions& options) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                            const CallOptions& options) = 0;
  virtual absl::StatusOr<v1::ListDomainsResponse> ListDomains(const CallOptions& options) = 0;
};

}  // namespace scion::client
