// moe-extract drop: takes a domain out of a model.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/drop.h"

namespace scion {
namespace {

struct DropArguments {
  std::string model;
  std::string domain;
  bool json = false;
};

int RunDrop(const DropArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<DropResult> result =
      Drop({.model = args.model, .domain = args.domain, .version = SCION_VERSION, .now = absl::Now()});
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson({{"model", args.model},
               {"domain", args.domain},
               {"file", result->file},
               {"bytes", result->bytes},
               {"domains", result->domains},
               {"default_domain", result->default_domain}});
    return kDone;
  }
  std::printf("%s: dropped %s; default domain %s. %s (%.1f MB) stays for rollback until gc\n", args.model.c_str(),
              args.domain.c_str(), result->default_domain.c_str(), result->file.c_str(),
              static_cast<double>(result->bytes) * 1e-6);
  return kDone;
}

}  // namespace

void AddDropCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("drop", "Takes a domain out of a model; its file stays until gc.");
  verb.footer("Example: moe-extract drop my-model --domain law");
  const auto args = std::make_shared<DropArguments>();
  AddModel(verb, args->model)->required();
  AddDomain(verb, args->domain)->required();
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunDrop(*args); }; });
}

}  // namespace scion
