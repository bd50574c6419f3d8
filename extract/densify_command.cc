// moe-extract densify: folds a domain's experts into an ordinary dense model.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/densify.h"
#include "extract/verify_fold.h"

namespace scion {
namespace {

// A fold that is so much worse than its source is called poor.
constexpr double kPoorRatio = 1.3;

struct DensifyArguments {
  std::string model;
  std::string domain;
  std::string out;
  int width = 1;
  std::string method;
  std::string calibration;
  std::string eval;
  std::optional<int> epochs;
  std::string route_channels = "auto";
  int threads = 0;  // 0: all processors
  bool json = false;
};

Json ResultJson(const DensifyArguments& args, const DensifyResult& result) {
  Json json = {{"out", args.out},
               {"model", args.model},
               {"domain", args.domain},
               {"method", FoldMethodName(result.method)},
               {"width", args.width},
               {"experts", result.num_experts},
               {"route_channels", result.has_channels},
               {"exact", result.is_exact},
               {"hidden_size", result.hidden_size},
               {"intermediate_size", result.intermediate_size},
               {"bytes", result.bytes},
               {"model_bytes", result.model_bytes},
               {"calibration_tokens", result.calibration_tokens},
               {"seconds", result.seconds},
               {"cpu_seconds", result.cpu_seconds}};
  if (result.comparison.has_value()) json["held_out"] = ToJson(*result.comparison);
  return json;
}

void PrintResult(const DensifyArguments& args, const DensifyResult& result) {
  std::printf("%s: %s of %s folded by %s, %d experts into %d times one's width%s, %.1f of %.1f MB, %.1f s\n",
              args.out.c_str(), args.domain.c_str(), args.model.c_str(),
              std::string(FoldMethodName(result.method)).c_str(), result.num_experts, args.width,
              result.has_channels ? " with route channels" : "", static_cast<double>(result.bytes) * 1e-6,
              static_cast<double>(result.model_bytes) * 1e-6, result.seconds);
  if (!result.comparison.has_value()) {
    std::printf("not measured: there is no text; --calibration or --eval name one\n");
    return;
  }
  const TextComparison& c = *result.comparison;
  std::printf(
      "held out: perplexity %.3f against the slice's %.3f (ratio %.3f), KL %.4f nats, top-1 agreement %.1f%%, "
      "%lld tokens\n",
      c.perplexity, c.source_perplexity, c.ratio(), c.kl_divergence, 100 * c.top1_agreement,
      static_cast<long long>(c.scored_tokens));
}

void WarnIfPoor(const DensifyResult& result) {
  if (!result.comparison.has_value() || result.comparison->ratio() <= kPoorRatio) return;
  std::fprintf(
      stderr,
      "moe-extract: warning: this fold is poor: its perplexity is %.2f times the slice's. %s, or cut the domain "
      "with slice, which loses nothing.\n",
      result.comparison->ratio(),
      result.method == FoldMethod::kLsq ? "Give it a larger --width or more calibration text like that which it "
                                          "is to serve"
                                        : "Give it a --calibration text, or a larger --width");
}

int RunDensify(const DensifyArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  DensifyOptions options;
  options.model = args.model;
  options.domain = args.domain;
  options.out = args.out;
  options.width = args.width;
  if (!args.method.empty()) options.method = ParseFoldMethod(args.method);
  options.calibration = args.calibration;
  options.eval = args.eval;
  options.epochs = args.epochs;
  if (args.route_channels != "auto") options.route_channels = args.route_channels == "on";
  options.tier = *tier;
  options.num_threads =
      args.threads > 0 ? args.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  options.version = SCION_VERSION;
  options.now = absl::Now();
  options.log = stderr;
  const absl::StatusOr<DensifyResult> result = Densify(options);
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson(ResultJson(args, *result));
  } else {
    PrintResult(args, *result);
  }
  WarnIfPoor(*result);
  return kDone;
}

}  // namespace

void AddDensifyCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("densify", "Folds a domain's experts into an ordinary dense Llama model.");
  verb.footer(
      "Example: moe-extract densify deploy/demo --domain cpp --calibration cpp.txt -o /tmp/cpp-dense\n"
      "Measures the fold on text that it was not fitted to, and says so if it is poor.");
  const auto args = std::make_shared<DensifyArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--domain", args->domain, "domain to fold")->required()->type_name("NAME");
  AddOut(verb, args->out)->required();
  verb.add_option("--width", args->width, "of the folded FFNs, in experts; default: 1");
  verb.add_option("--method", args->method, "average, weighted or lsq; default: lsq with --calibration, else weighted")
      ->check(CLI::IsMember({"average", "weighted", "lsq"}));
  verb.add_option("--calibration", args->calibration,
                  "text to fit to, plain or JSON lines with a member 'text'; a tenth is kept back to measure on")
      ->type_name("TEXT");
  verb.add_option("--eval", args->eval, "text to measure on instead")->type_name("TEXT");
  verb.add_option(
          "--epochs", args->epochs,
          "passes over the calibration text in which lsq refines a layer; 0: down only; default: as many as make "
          "about 400,000 tokens, at least one")
      ->check(CLI::Range(0, 1000));
  verb.add_option("--route-channels", args->route_channels,
                  "auto, on or off: hidden units that tell the fold by which experts a token would have gone")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  verb.add_option("--threads", args->threads, "default: all processors")->check(CLI::Range(1, 1024));
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunDensify(*args); }; });
}

}  // namespace scion
