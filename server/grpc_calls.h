// The gRPC calls in flight: counted, bounded, and dropped when their client does not take what is written.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "absl/time/time.h"
#include "server/metrics.h"

namespace scion {

class GrpcCall {
 public:
  virtual ~GrpcCall() = default;
  // Cancels the call if a write of it began before `limit` and is not done.
  virtual void CancelIfStalled(absl::Time limit) = 0;
};

class GrpcCalls {
 public:
  GrpcCalls(int max_calls, absl::Duration write_timeout, ServerMetrics& metrics);
  ~GrpcCalls();

  // False: there are too many.
  bool Add(GrpcCall* call);
  // Once this has returned, the call is not touched any more.
  void Remove(GrpcCall* call);

 private:
  void WatchLoop();

  const size_t max_calls_;
  const absl::Duration write_timeout_;
  ServerMetrics& metrics_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_set<GrpcCall*> calls_;
  bool stopping_ = false;
  std::thread watch_;
};

}  // namespace scion
