// moe-extract gc: removes data files that no generation in use needs.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "extract/collect_garbage.h"
#include "extract/commands.h"

namespace scion {
namespace {

struct GcArguments {
  std::string model;
  int keep = 0;
  bool dry_run = false;
  bool json = false;
};

int RunGc(const GcArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<CollectGarbageResult> result = CollectGarbage(
      {.model = args.model, .keep = args.keep, .dry_run = args.dry_run, .version = SCION_VERSION, .now = absl::Now()});
  if (!result.ok()) return Fail(result.status());
  uint64_t bytes = 0;
  Json files = Json::array();
  for (const CollectGarbageResult::File& file : result->removed) {
    bytes += file.bytes;
    files.push_back({{"path", file.path}, {"bytes", file.bytes}});
  }
  if (args.json) {
    PrintJson({{"model", args.model}, {"dry_run", args.dry_run}, {"removed", files}, {"bytes", bytes}});
    return kDone;
  }
  const char* what = args.dry_run ? "would remove" : "removed";
  for (const CollectGarbageResult::File& file : result->removed) {
    std::printf("%s: %s %s\n", args.model.c_str(), what, file.path.c_str());
  }
  std::printf("%s: %s %zu files, %.1f MB\n", args.model.c_str(), what, result->removed.size(),
              static_cast<double>(bytes) * 1e-6);
  return kDone;
}

}  // namespace

void AddGcCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand(
      "gc", "Removes earlier generations of domains, and data files in domains/ that the lock does not know.");
  verb.footer("Example: moe-extract gc my-model --keep 1");
  const auto args = std::make_shared<GcArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--keep", args->keep, "earlier generations of each domain to keep, the latest; default: 0")
      ->check(CLI::Range(0, 1'000'000));
  verb.add_flag("--dry-run", args->dry_run, "only say what would be removed");
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunGc(*args); }; });
}

}  // namespace scion
