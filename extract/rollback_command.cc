// moe-extract rollback: back to an earlier generation of a domain.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/rollback.h"

namespace scion {
namespace {

struct RollbackArguments {
  std::string model;
  std::string domain;
  std::optional<uint64_t> to;
  bool json = false;
};

int RunRollback(const RollbackArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<RollbackResult> result = Rollback({.model = args.model,
                                                          .domain = args.domain,
                                                          .to = args.to,
                                                          .version = SCION_VERSION,
                                                          .now = absl::Now(),
                                                          .log = stderr});
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson({{"model", args.model},
               {"domain", args.domain},
               {"from", result->from.has_value() ? Json(*result->from) : Json(nullptr)},
               {"to", result->to},
               {"file", result->file}});
    return kDone;
  }
  const std::string from = result->from.has_value() ? "generation " + std::to_string(*result->from) : "being dropped";
  std::printf("%s: %s from %s to generation %llu, %s\n", args.model.c_str(), args.domain.c_str(), from.c_str(),
              static_cast<unsigned long long>(result->to), result->file.c_str());
  return kDone;
}

}  // namespace

void AddRollbackCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("rollback", "Back to an earlier generation of a domain, or undoes its drop.");
  verb.footer("Example: moe-extract rollback my-model --domain law");
  const auto args = std::make_shared<RollbackArguments>();
  AddModel(verb, args->model)->required();
  AddDomain(verb, args->domain)->required();
  verb.add_option("--to", args->to, "a generation; default: the last before the one in use")
      ->check(CLI::PositiveNumber);
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunRollback(*args); }; });
}

}  // namespace scion
