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
                                                    .link = args.link,
                                                    .version = SCION_VERSION,
                                                    .now = absl::Now(),
                                                    .log = stderr});
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson({{"out", args.out},
               {"model", args.model},
               {"domains", result->domains},
               {"bytes", result->cut_bytes},
               {"model_bytes", result->model_bytes},
               {"reflinks", result->reflinks},
               {"hard_links", result->hard_links}});
    return kDone;
  }
  const char* linked = result->hard_links > 0 ? ", hard links" : result->reflinks > 0 ? ", reflinks" : "";
  std::printf("%s: domains %s of %s, %.1f of %.1f MB%s\n", args.out.c_str(),
              absl::StrJoin(result->domains, ",").c_str(), args.model.c_str(),
              static_cast<double>(result->cut_bytes) * 1e-6, static_cast<double>(result->model_bytes) * 1e-6, linked);
  return kDone;
}

void AddSliceCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("slice", "Cuts domains out as a model of their own.");
  verb.footer("Example: moe-extract slice deploy/demo --domain cpp,python -o /tmp/code");
  const auto args = std::make_shared<SliceArguments>();
  AddModel(verb, args->model)->required();
  AddDomains(verb, args->domains)->required();
  AddOut(verb, args->out)->required();
  verb.add_flag("--link", args->link,
                "reflinks or hard links instead of copies; hashes are the lock's, nothing is read");
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunSlice(*args); }; });
}

}  // namespace scion
