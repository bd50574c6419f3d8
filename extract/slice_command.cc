// moe-extract slice: cuts domains out as a model of their own.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/slice.h"

namespace scion {

int RunSlice(const SliceArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<SliceResult> result = Slice({.model = args.model,
                                                    .out = args.out,
                                                    .domains = args.domains,
                                                    .version = SCION_VERSION,
                                                    .now = absl::Now(),
                                                    .log = stderr});
  if (!result.ok()) return Fail(result.status());
  std::printf("%s: domains %s of %s, %.1f of %.1f MB\n", args.out.c_str(), absl::StrJoin(result->domains, ",").c_str(),
              args.model.c_str(), static_cast<double>(result->cut_bytes) * 1e-6,
              static_cast<double>(result->model_bytes) * 1e-6);
  return kDone;
}

void AddSliceCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("slice", "Cuts domains out as a model of their own.");
  verb.footer("Example: moe-extract slice deploy/demo --domain cpp,python -o /tmp/code");
  const auto args = std::make_shared<SliceArguments>();
  AddModel(verb, args->model)->required();
  AddDomains(verb, args->domains)->required();
  AddOut(verb, args->out)->required();
  verb.callback([args, &invocation] { invocation.run = [args] { return RunSlice(*args); }; });
}

}  // namespace scion
