// moe-extract plan: what each way to cut a domain out would give.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>

#include "absl/strings/str_format.h"
#include "extract/commands.h"
#include "extract/plan.h"

namespace scion {
namespace {

struct PlanArguments {
  std::string model;
  std::string domain;
  std::string eval;
  int64_t max_eval_tokens = 20'000;
  int threads = 0;
  bool json = false;
};

Json ToJson(const CutPlans& plans, const PlanArguments& args) {
  Json cuts = Json::array();
  for (const CutPlan& cut : plans.cuts) {
    Json json = {{"name", cut.name},
                 {"command", cut.command},
                 {"disk_bytes", cut.disk_bytes},
                 {"memory_bytes", plans.MemoryBytes(cut)},
                 {"weight_bytes", cut.weight_bytes},
                 {"kv_bytes_per_token", cut.kv_bytes_per_token},
                 {"step_bytes", cut.step_bytes},
                 {"flops_per_token", cut.flops_per_token},
                 {"bytes_per_token", cut.bytes_per_token},
                 {"quality", nullptr}};
    if (cut.quality.has_value()) {
      json["quality"] = {{"scored_tokens", cut.quality->scored_tokens},
                         {"perplexity", cut.quality->perplexity},
                         {"kl_divergence", cut.quality->kl_divergence},
                         {"top1_agreement", cut.quality->top1_agreement}};
    }
    cuts.push_back(std::move(json));
  }
  return {{"model", args.model},      {"domain", args.domain}, {"model_bytes", plans.model_bytes},
          {"context", plans.context}, {"cuts", cuts},          {"impossible", plans.impossible}};
}

void PrintTable(const CutPlans& plans, const PlanArguments& args) {
  const auto mega = [](uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; };
  std::printf("%s, domain %s; the whole model has %.1f MB. Memory: weights, and one sequence of %d tokens.\n",
              args.model.c_str(), args.domain.c_str(), mega(plans.model_bytes), plans.context);
  std::printf("%-15s %10s %10s %13s %13s %11s %10s %7s\n", "cut", "disk MB", "memory MB", "MFLOPs/token",
              "MB read/token", "perplexity", "KL nats", "top-1");
  for (const CutPlan& cut : plans.cuts) {
    const std::string row =
        absl::StrFormat("%-15s %10.1f %10.1f %13.1f %13.2f", cut.name, mega(cut.disk_bytes),
                        mega(plans.MemoryBytes(cut)), mega(cut.flops_per_token), mega(cut.bytes_per_token));
    const std::string quality = cut.quality.has_value()
                                    ? absl::StrFormat(" %11.4f %10.6f %6.2f%%", cut.quality->perplexity,
                                                      cut.quality->kl_divergence, 100 * cut.quality->top1_agreement)
                                    : absl::StrFormat(" %11s %10s %7s", "-", "-", "-");
    std::printf("%s%s\n", row.c_str(), quality.c_str());
  }
  for (const std::string& reason : plans.impossible) std::printf("not possible: %s\n", reason.c_str());
  const bool has_folds =
      std::ranges::any_of(plans.cuts, [](const CutPlan& cut) { return cut.name.starts_with("fold"); });
  if (has_folds) std::printf("How good a fold is, is known once it is made: moe-extract densify measures it.\n");
}

int RunPlan(const PlanArguments& args) {
  const absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  const CancelOnSignal cancel;
  const absl::StatusOr<CutPlans> plans =
      PlanCuts({.model = args.model,
                .domain = args.domain,
                .eval = args.eval,
                .max_eval_tokens = args.max_eval_tokens,
                .tier = *tier,
                .num_threads = args.threads > 0 ? args.threads
                                                : std::max(1, static_cast<int>(std::thread::hardware_concurrency())),
                .log = stderr});
  if (!plans.ok()) return Fail(plans.status());
  if (args.json) {
    PrintJson(ToJson(*plans, args));
  } else {
    PrintTable(*plans, args);
  }
  return kDone;
}

}  // namespace

void AddPlanCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("plan", "Shows what each way to cut a domain out would give; writes nothing.");
  verb.footer("Example: moe-extract plan deploy/demo --domain cpp --eval held-out.txt");
  const auto args = std::make_shared<PlanArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--domain", args->domain, "the domain to cut out")->required()->type_name("NAME");
  verb.add_option("--eval", args->eval, "a text to measure perplexity, KL divergence and top-1 agreement on")
      ->type_name("FILE");
  verb.add_option("--max-eval-tokens", args->max_eval_tokens, "of the text; default: 20000")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40));
  verb.add_option("--threads", args->threads, "default: all processors")->check(CLI::Range(1, 1024));
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunPlan(*args); }; });
}

}  // namespace scion
