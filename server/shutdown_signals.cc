#include "server/shutdown_signals.h"

#include <signal.h>
#include <unistd.h>

#include <utility>

namespace scion {
namespace {

// Ends the loop.
constexpr int kQuitSignal = SIGUSR1;

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, kQuitSignal);
  return set;
}

}  // namespace

ShutdownSignals::ShutdownSignals() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Loop(); });
}

ShutdownSignals::~ShutdownSignals() {
  pthread_kill(thread_.native_handle(), kQuitSignal);
  thread_.join();
}

int ShutdownSignals::WaitForFirst() {
  std::unique_lock lock(mutex_);
  is_waiting_ = true;
  wake_.wait(lock, [this] { return first_.has_value(); });
  return *first_;
}

void ShutdownSignals::OnHangup(std::function<void()> report) {
  std::lock_guard lock(report_mutex_);
  report_ = std::move(report);
}

void ShutdownSignals::Loop() {
  const sigset_t set = Signals();
  for (;;) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0) continue;
    if (signal == kQuitSignal) return;
    if (signal == SIGHUP) {
      std::lock_guard lock(report_mutex_);
      if (report_) report_();
      continue;
    }
    std::lock_guard lock(mutex_);
    if (!is_waiting_) _exit(0);
    if (first_) _exit(1);
    first_ = signal;
    wake_.notify_one();
  }
}

}  // namespace scion
