// moe-extract inspect: what a model holds.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "extract/commands.h"
#include "extract/inspect.h"

namespace scion {
namespace {

struct InspectArguments {
  std::string model;
  bool json = false;
  bool check = false;
};

int RunInspect(const InspectArguments& args) {
  // The hashes first: they name the damaged file and tensor also where the directory no longer opens.
  if (args.check) {
    const absl::StatusOr<std::vector<Difference>> differences = CheckHashes(args.model, stderr);
    if (!differences.ok()) return Fail(differences.status());
    if (!differences->empty()) {
      PrintDifferences(*differences);
      return kFailed;
    }
  }
  absl::StatusOr<Json> inspection = Inspect(args.model);
  if (!inspection.ok()) return Fail(inspection.status());
  if (args.check) (*inspection)["check"] = "ok";
  if (args.json) {
    PrintJson(*inspection);
  } else {
    std::fputs(InspectTable(*inspection).c_str(), stdout);
    if (args.check) std::puts("check: all hashes as in the lock");
  }
  return kDone;
}

}  // namespace

void AddInspectCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("inspect", "Shows what a model holds.");
  verb.footer("Example: moe-extract inspect deploy/demo --check");
  const auto args = std::make_shared<InspectArguments>();
  AddModel(verb, args->model)->required();
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.add_flag("--check", args->check, "compare every file with the lock's hashes; exit 1 if one differs");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunInspect(*args); }; });
}

}  // namespace scion
