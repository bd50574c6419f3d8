// SIGTERM and SIGINT: the first asks for a drain, the next ends the process at once.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

namespace scion {

class ShutdownSignals {
 public:
  // Blocks both signals in this thread and in those it will start, and waits for them in one of its own.
  ShutdownSignals();
  ~ShutdownSignals();

  // The number of the first signal. If that came while nobody was waiting, the process has ended with exit code 0:
  // there was nothing to drain.
  int WaitForFirst();

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<int> first_;
  bool is_waiting_ = false;
  std::thread thread_;
};

}  // namespace scion
