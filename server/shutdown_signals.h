// SIGTERM and SIGINT: the first asks for a drain, the next ends the process at once. SIGHUP asks for a report, and is
// ignored while nobody has said what to report.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace scion {

class ShutdownSignals {
 public:
  // Blocks these signals in this thread and in those it will start, and waits for them in one of its own.
  ShutdownSignals();
  ~ShutdownSignals();

  // The number of the first signal. If that came while nobody was waiting, the process has ended with exit code 0:
  // there was nothing to drain.
  int WaitForFirst();

  // Calls `report` on the thread that waits for signals, one call after another, whenever SIGHUP comes. Nothing: no
  // more; on return none is running.
  void OnHangup(std::function<void()> report);

 private:
  void Loop();

  std::mutex report_mutex_;
  std::function<void()> report_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<int> first_;
  bool is_waiting_ = false;
  std::thread thread_;
};

}  // namespace scion
