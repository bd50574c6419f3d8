// The verbs of moe-client. Each Add function describes one verb to the command-line parser and leaves what it does in
// the invocation; RunCommandLine parses, connects and runs it.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"

namespace CLI {
class App;
}

namespace scion::client {

struct Terminal {
  std::istream& in;
  std::ostream& out;  // results
  std::ostream& err;  // everything else
};

struct Invocation {
  Terminal& terminal;
  CancelSource& cancel;
  std::string address;
  double timeout_seconds = 0;  // of one call; 0: none
  bool json = false;
  std::function<absl::Status(Client&)> run;  // set by the verb that was chosen

  CallOptions call_options() const;
};

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// `arguments` without the program's name. `default_address` serves where --address is absent. Returns the exit code.
int RunCommandLine(std::vector<std::string> arguments, const std::string& default_address, Terminal& terminal,
                   CancelSource& cancel);

void AddGenerateCommand(CLI::App& app, Invocation& invocation);
void AddScoreCommand(CLI::App& app, Invocation& invocation);
void AddDomainsCommand(CLI::App& app, Invocation& invocation);
void AddBenchCommand(CLI::App& app, Invocation& invocation);

// --address, --timeout and --json, which every verb has.
void AddCommonOptions(CLI::App& verb, Invocation& invocation);

}  // namespace scion::client
