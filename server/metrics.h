// What /metrics shows: counters and histograms of the server, and a snapshot of the engine.
//
// Thread-safe; recording takes a lock of its own for nanoseconds, and nothing here waits for the engine.
#pragma once

#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <atomic>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/engine.h"

namespace scion {

enum class Transport : uint8_t { kHttp, kGrpc };

class ServerMetrics {
 public:
  ServerMetrics();

  // A request for generation or scoring has ended, however it ended.
  void RequestEnded(Transport transport, absl::StatusCode code);
  void ObserveTimeToFirstToken(double seconds);
  // As the transport took the tokens: a reader that lags takes several at once.
  void ObserveInterTokenLatency(double seconds);

  std::atomic<int> http_connections{0};
  std::atomic<int> grpc_calls{0};

  // The text format of Prometheus. `engine` is null while the model is loading.
  std::string Text(const Engine* engine, std::string_view version, bool ready) const;

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Histogram& time_to_first_token_;
  prometheus::Histogram& inter_token_latency_;
};

}  // namespace scion
