// moe-extract graft: puts a domain of another model into a model.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/graft.h"

namespace scion {
namespace {

struct GraftArguments {
  std::string model;
  std::string donor;
  std::string as;
  std::string out;
  bool in_place = false;
  bool json = false;
};

int RunGraft(const GraftArguments& args) {
  const CancelOnSignal cancel;
  const Donor donor = ParseDonor(args.donor);
  const absl::StatusOr<GraftResult> result = Graft({.model = args.model,
                                                    .donor = donor,
                                                    .as = args.as,
                                                    .out = args.in_place ? std::nullopt : std::optional(args.out),
                                                    .version = SCION_VERSION,
                                                    .now = absl::Now(),
                                                    .log = stderr});
  if (!result.ok()) return Fail(result.status());
  const std::string& place = args.in_place ? args.model : args.out;
  if (args.json) {
    PrintJson({{"model", args.model},
               {"out", place},
               {"donor", donor.model.string()},
               {"donor_domain", result->donor_domain},
               {"domain", args.as},
               {"replaced", result->replaced},
               {"experts", result->num_experts},
               {"generation", result->generation},
               {"file", result->file},
               {"bytes", result->bytes}});
    return kDone;
  }
  std::printf("%s: %s %s, generation %llu, is %s of %s: %s, %.1f MB\n", place.c_str(),
              result->replaced ? "replaced" : "new", args.as.c_str(),
              static_cast<unsigned long long>(result->generation), result->donor_domain.c_str(), donor.model.c_str(),
              result->file.c_str(), static_cast<double>(result->bytes) * 1e-6);
  return kDone;
}

}  // namespace

void AddGraftCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("graft", "Puts a domain of another model of the same trunk into a model.");
  verb.footer("Example: moe-extract graft deploy/demo --from /tmp/cpp --as cpp2 -o /tmp/demo-cpp2");
  const auto args = std::make_shared<GraftArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--from", args->donor, "directory that has the domain, and its name there if it has several")
      ->required()
      ->type_name("DONOR[@DOMAIN]");
  verb.add_option("--as", args->as, "the domain's name in MODEL; one of that name is replaced")
      ->required()
      ->type_name("NAME");
  CLI::Option* out = AddOut(verb, args->out);
  CLI::Option* in_place = verb.add_flag("--in-place", args->in_place, "change MODEL itself");
  out->excludes(in_place);
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &verb, &invocation] {
    if (verb.count("--out") + verb.count("--in-place") == 0) throw CLI::RequiredError("--out or --in-place");
    invocation.run = [args] { return RunGraft(*args); };
  });
}

}  // namespace scion
