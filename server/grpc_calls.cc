#include "server/grpc_calls.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace scion {

GrpcCalls::GrpcCalls(int max_calls, absl::Duration write_timeout, ServerMetrics& metrics)
    : max_calls_(static_cast<size_t>(max_calls)),
      write_timeout_(write_timeout),
      metrics_(metrics),
      watch_([this] { WatchLoop(); }) {}

GrpcCalls::~GrpcCalls() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  watch_.join();
}

bool GrpcCalls::Add(GrpcCall* call) {
  std::lock_guard lock(mutex_);
  if (calls_.size() >= max_calls_) return false;
  calls_.insert(call);
  metrics_.grpc_calls = static_cast<int>(calls_.size());
  return true;
}

void GrpcCalls::Remove(GrpcCall* call) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
  metrics_.grpc_calls = static_cast<int>(calls_.size());
}

void GrpcCalls::WatchLoop() {
  const auto interval = absl::ToChronoMilliseconds(std::min(absl::Seconds(1), write_timeout_ / 4));
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, interval, [this] { return stopping_; })) {
    const absl::Time limit = absl::Now() - write_timeout_;
    for (GrpcCall* call : calls_) call->CancelIfStalled(limit);
  }
}

}  // namespace scion
