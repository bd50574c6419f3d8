// moe-extract: cuts a domain out of a model, proves that the cut is exact, quantises a model, shows what one holds.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "extract/commands.h"

namespace scion {
namespace {

int Main(int argc, char** argv) {
  Invocation invocation;
  CLI::App app(
      "Cuts domains out of a Scion model, and proves that a cut gives the same bits.\n"
      "Without a verb: slices, then verifies.\n"
      "Example: moe-extract deploy/demo --domain cpp -o /tmp/cpp",
      "moe-extract");
  app.footer("Exit codes: 0 done, 1 failed, 2 usage, 3 verify differs.");
  app.set_version_flag("--version", "moe-extract " SCION_VERSION);
  app.require_subcommand(0, 1);
  AddCutOptions(app, invocation);
  AddDensifyCommand(app, invocation);
  AddDropCommand(app, invocation);
  AddExportCommand(app, invocation);
  AddGcCommand(app, invocation);
  AddGraftCommand(app, invocation);
  AddInspectCommand(app, invocation);
  AddLockCommand(app, invocation);
  AddLogCommand(app, invocation);
  AddPlanCommand(app, invocation);
  AddQuantizeCommand(app, invocation);
  AddReportCommand(app, invocation);
  AddRollbackCommand(app, invocation);
  AddSliceCommand(app, invocation);
  AddUpcycleCommand(app, invocation);
  AddVerifyCommand(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  return invocation.run();
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) {
  const int code = scion::Main(argc, argv);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "moe-extract: the results can't be written to standard output\n");
    return scion::kFailed;
  }
  return code;
}
