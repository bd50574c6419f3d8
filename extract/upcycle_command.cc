// moe-extract upcycle: makes a dense model one with domains.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/upcycle.h"

namespace scion {
namespace {

struct UpcycleArguments {
  std::string dense;
  std::vector<std::string> domains;
  int experts = 0;
  int sparse_layers = 0;
  std::string out;
  std::string histogram;
  uint64_t seed = 1;
  bool json = false;
};

int RunUpcycle(const UpcycleArguments& args) {
  const CancelOnSignal cancel;
  UpcycleOptions options{.dense = args.dense,
                         .out = args.out,
                         .domains = args.domains,
                         .num_experts = args.experts,
                         .sparse_layers = args.sparse_layers,
                         .histogram = std::nullopt,
                         .seed = args.seed,
                         .version = SCION_VERSION,
                         .now = absl::Now(),
                         .log = stderr};
  if (!args.histogram.empty()) options.histogram = args.histogram;
  const absl::StatusOr<UpcycleResult> result = Upcycle(options);
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson({{"out", args.out},
               {"dense", args.dense},
               {"domains", args.domains},
               {"experts", args.experts},
               {"sparse_layers", result->sparse_layers},
               {"seed", args.seed},
               {"balanced_by", args.histogram.empty() ? "token_types" : "token_mass"},
               {"smallest_share", result->smallest_share},
               {"largest_share", result->largest_share},
               {"bytes", result->bytes},
               {"dense_bytes", result->dense_bytes}});
    return kDone;
  }
  std::printf(
      "%s: domains %s of %d experts in the last %d layers of %s, each with %.1f to %.1f%% of the %s; %.1f MB of "
      "%.1f MB\n",
      args.out.c_str(), absl::StrJoin(args.domains, ",").c_str(), args.experts, args.sparse_layers, args.dense.c_str(),
      100 * result->smallest_share, 100 * result->largest_share,
      args.histogram.empty() ? "token types" : "text's tokens", static_cast<double>(result->bytes) * 1e-6,
      static_cast<double>(result->dense_bytes) * 1e-6);
  return kDone;
}

}  // namespace

void AddUpcycleCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand(
      "upcycle", "Makes a dense Llama model one with domains, whose experts start as copies of its FFNs.");
  verb.footer(
      "Example: moe-extract upcycle SmolLM2-135M-Instruct.Q4_1.gguf --domains code,law,chat --experts 2 "
      "--sparse-layers 8 -o /tmp/smol-domains\n"
      "`moe-extract verify /tmp/smol-domains --against SmolLM2-135M-Instruct.Q4_1.gguf` proves that every domain gives "
      "the parent's bits.");
  const auto args = std::make_shared<UpcycleArguments>();
  verb.add_option("dense", args->dense, "directory or GGUF file of a dense Llama model")
      ->required()
      ->type_name("DENSE");
  verb.add_option("--domains", args->domains, "the new model's domains, separated by commas; the first is the default")
      ->delimiter(',')
      ->required()
      ->type_name("NAMES");
  verb.add_option("--experts", args->experts, "experts of each domain in each sparse layer")
      ->required()
      ->type_name("K");
  verb.add_option("--sparse-layers", args->sparse_layers, "how many of the last layers get experts")
      ->required()
      ->type_name("N");
  AddOut(verb, args->out)->required();
  verb.add_option("--histogram", args->histogram,
                  "a text by whose tokens the routes are balanced; default: by token types")
      ->type_name("TEXT");
  verb.add_option("--seed", args->seed, "of the random routes; default: 1")
      ->check(CLI::NonNegativeNumber)
      ->type_name("S");
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunUpcycle(*args); }; });
}

}  // namespace scion
