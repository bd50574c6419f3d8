#include "client/commands.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ostream>

namespace scion::client {

CallOptions Invocation::call_options() const {
  CallOptions options{.cancel = &cancel};
  if (timeout_seconds > 0) options.timeout = absl::Seconds(timeout_seconds);
  return options;
}

void AddCommonOptions(CLI::App& verb, Invocation& invocation) {
  verb.add_option("--address", invocation.address, "the server's gRPC address, HOST:PORT (environment: SCION_ADDRESS)")
      ->capture_default_str();
  verb.add_option("--timeout", invocation.timeout_seconds, "seconds that one call may take; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_flag("--json", invocation.json, "print JSON");
}

int RunCommandLine(std::vector<std::string> arguments, const std::string& default_address, Terminal& terminal,
                   CancelSource& cancel) {
  Invocation invocation{.terminal = terminal, .cancel = cancel, .address = default_address, .run = nullptr};
  CLI::App app("moe-client: asks a Scion server over gRPC.", "moe-client");
  app.set_version_flag("--version", "moe-client " SCION_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Example:\n  moe-client generate --domain cpp --prompt '#include <vector>' --max-tokens 64\n"
      "Each verb has its own --help.");
  AddGenerateCommand(app, invocation);
  AddScoreCommand(app, invocation);
  AddDomainsCommand(app, invocation);
  AddBenchCommand(app, invocation);
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants a vector
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, terminal.out, terminal.err) == 0 ? kExitDone : kExitUsage;
  }

  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(invocation.address);
  const absl::Status status = client.ok() ? invocation.run(**client) : client.status();
  terminal.out.flush();
  if (status.ok()) return kExitDone;
  terminal.err << "moe-client: " << absl::StatusCodeToString(status.code()) << ": " << status.message() << std::endl;
  return kExitFailed;
}

}  // namespace scion::client
