// moe-extract quantize: rounds a model's matrices to blocks.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/quantize.h"

namespace scion {
namespace {

struct QuantizeArguments {
  std::string model;
  std::string type;
  std::string out;
  bool json = false;
};

int RunQuantize(const QuantizeArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<QuantizeResult> result = Quantize({.model = args.model,
                                                          .out = args.out,
                                                          .type = args.type == "q4_0" ? DType::kQ4_0 : DType::kQ8_0,
                                                          .version = SCION_VERSION,
                                                          .now = absl::Now(),
                                                          .log = stderr});
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    PrintJson({{"out", args.out},
               {"type", args.type},
               {"model", args.model},
               {"quantized", result->quantized},
               {"bytes", result->bytes},
               {"left_as_is", result->left_as_is},
               {"model_bytes", result->model_bytes}});
    return kDone;
  }
  const std::string left =
      result->left_as_is == 0 ? "" : absl::StrFormat(" (%d stay: no whole blocks in a row)", result->left_as_is);
  std::printf("%s: %d matrices of %s in %s%s, %.1f of %.1f MB\n", args.out.c_str(), result->quantized,
              args.model.c_str(), args.type.c_str(), left.c_str(), static_cast<double>(result->bytes) * 1e-6,
              static_cast<double>(result->model_bytes) * 1e-6);
  return kDone;
}

}  // namespace

void AddQuantizeCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("quantize", "Rounds a model's matrices to blocks of 8 or 4 bits.");
  verb.footer("Example: moe-extract quantize deploy/demo --type q4_0 -o /tmp/demo-q4");
  const auto args = std::make_shared<QuantizeArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--type", args->type, "q8_0, or q4_0 with head and embedding in q8_0")
      ->required()
      ->check(CLI::IsMember({"q8_0", "q4_0"}));
  AddOut(verb, args->out)->required();
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunQuantize(*args); }; });
}

}  // namespace scion
