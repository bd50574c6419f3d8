// moe-extract report: one page that shows a model.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/report.h"

namespace scion {
namespace {

struct ReportArguments {
  std::string model;
  std::string out;
  std::string text;
  std::string matrix;
  std::vector<std::string> folds;
  int threads = 0;
  bool json = false;
};

int RunReport(const ReportArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  const absl::StatusOr<ReportFigures> figures =
      WriteReport({.model = args.model,
                   .out = args.out,
                   .text = args.text,
                   .matrix = args.matrix,
                   .folds = {args.folds.begin(), args.folds.end()},
                   .tier = *tier,
                   .num_threads = args.threads > 0 ? args.threads
                                                   : std::max(1, static_cast<int>(std::thread::hardware_concurrency())),
                   .version = SCION_VERSION,
                   .now = absl::Now(),
                   .log = stderr});
  if (!figures.ok()) return Fail(figures.status());
  if (args.json) {
    Json json = ToJson(*figures);
    json["out"] = args.out;
    PrintJson(json);
    return kDone;
  }
  std::printf("%s: %s, %zu %s\n", args.out.c_str(), args.model.c_str(), figures->balance.size(),
              figures->balance.size() == 1 ? "domain" : "domains");
  if (!figures->matrix.has_value()) std::printf("perplexity was not measured: --text names a directory of texts\n");
  return kDone;
}

}  // namespace

void AddReportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("report", "Writes one HTML page that shows a model.");
  verb.footer(
      "Example: moe-extract report deploy/demo --text deploy/demo/eval -o /tmp/demo.html\n"
      "The page needs no network and no script. Without --text, headers, routes and lock are read, nothing more.");
  const auto args = std::make_shared<ReportArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("-o,--out", args->out, "file to write; must not exist")->required()->type_name("FILE");
  CLI::Option* text =
      verb.add_option("--text", args->text,
                      "directory of NAME.jsonl and NAME.txt, one for a domain or for none: measures the "
                      "perplexity of each under every domain, and route balance by its tokens")
          ->type_name("DIR");
  verb.add_option("--matrix", args->matrix,
                  "perplexities from a file instead, such as deploy/demo/eval/matrix.json; the page says so")
      ->type_name("FILE")
      ->excludes(text);
  verb.add_option("--folds", args->folds, "what densify --json said, one object or a list; may come several times")
      ->type_name("FILE");
  verb.add_option("--threads", args->threads, "default: all processors")->check(CLI::Range(1, 1024));
  verb.add_flag("--json", args->json, "the page's figures as JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunReport(*args); }; });
}

}  // namespace scion
