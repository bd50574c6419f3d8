// The program moe-client: the process around RunCommandLine.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <iostream>
#include <thread>

#include "client/commands.h"

namespace {

// The first Ctrl-C cancels the call in flight, so that the server frees its work and the program can say so. Without a
// call in flight, or the second time, the program ends at once.
void CancelOnSignal(scion::client::CancelSource& cancel, const sigset_t& signals) {
  std::thread([&cancel, signals] {
    for (bool first = true;; first = false) {
      int signal = 0;
      if (sigwait(&signals, &signal) != 0) continue;
      if (!first || !cancel.Cancel()) _exit(scion::client::kExitFailed);
    }
  }).detach();
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before gRPC starts its threads, which inherit it
  static scion::client::CancelSource cancel;      // outlives the thread that waits for signals
  CancelOnSignal(cancel, signals);

  const char* from_environment = getenv("SCION_ADDRESS");
  const std::string address =
      from_environment != nullptr && *from_environment != '\0' ? from_environment : scion::client::kDefaultAddress;
  scion::client::Terminal terminal{.in = std::cin, .out = std::cout, .err = std::cerr};
  return scion::client::RunCommandLine(std::vector<std::string>(argv + 1, argv + argc), address, terminal, cancel);
}
