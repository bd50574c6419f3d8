// moe-extract log: the lineage and the generations of a model.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "extract/commands.h"
#include "extract/lineage_log.h"

namespace scion {
namespace {

struct LogArguments {
  std::string model;
  bool json = false;
};

int RunLog(const LogArguments& args) {
  const absl::StatusOr<Json> log = LineageLog(args.model);
  if (!log.ok()) return Fail(log.status());
  if (args.json) {
    PrintJson(*log);
  } else {
    std::fputs(LineageLogText(*log).c_str(), stdout);
  }
  return kDone;
}

}  // namespace

void AddLogCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("log", "What came from where, when, by which version; generations on the disk.");
  verb.footer("Example: moe-extract log my-model");
  const auto args = std::make_shared<LogArguments>();
  AddModel(verb, args->model)->required();
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunLog(*args); }; });
}

}  // namespace scion
