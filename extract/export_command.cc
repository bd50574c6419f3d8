// moe-extract export: a model as a GGUF file or a Hugging Face directory.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/export.h"

namespace scion {
namespace {

const std::map<std::string, DType> kTypes = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}, {"q8_0", DType::kQ8_0}, {"q4_0", DType::kQ4_0}};

struct ExportArguments {
  std::string model;
  std::string format;
  std::string type;  // empty: as the source
  std::string out;
  bool json = false;
};

int RunExport(const ExportArguments& args) {
  const CancelOnSignal cancel;
  ExportOptions options = {
      .model = args.model, .out = args.out, .version = SCION_VERSION, .now = absl::Now(), .log = stderr};
  const bool is_gguf = args.format == "gguf";
  options.format = is_gguf ? ExportFormat::kGguf : ExportFormat::kHuggingFace;
  if (!args.type.empty()) options.type = kTypes.at(args.type);
  const absl::StatusOr<ExportResult> result = Export(options);
  if (!result.ok()) return Fail(result.status());
  const std::string main_type(DTypeName(result->main_type));
  if (args.json) {
    Json json = {{"out", args.out},   {"model", args.model},        {"format", args.format},
                 {"type", main_type}, {"tensors", result->tensors}, {"bytes", result->bytes}};
    if (is_gguf) json["pre_tokenizer"] = result->pre_tokenizer;
    PrintJson(json);
    return kDone;
  }
  std::string tokenizer;
  if (is_gguf) {
    tokenizer = result->pre_tokenizer.empty() ? ", without a tokenizer, as the model has none"
                                              : ", tokenizer '" + result->pre_tokenizer + "'";
  }
  std::printf("%s: %s as %s, %d tensors, most of it %s, %.1f MB%s\n", args.out.c_str(), args.model.c_str(),
              args.format.c_str(), result->tensors, main_type.c_str(), static_cast<double>(result->bytes) * 1e-6,
              tokenizer.c_str());
  return kDone;
}

}  // namespace

void AddExportCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("export", "Writes a model as a GGUF file or a Hugging Face directory.");
  verb.footer("Example: moe-extract export Qwen3-30B-A3B --format gguf --type q8_0 -o Qwen3-30B-A3B.q8.gguf");
  const auto args = std::make_shared<ExportArguments>();
  AddModel(verb, args->model)->required();
  verb.add_option("--format", args->format, "gguf, or hf")->required()->check(CLI::IsMember({"gguf", "hf"}));
  std::vector<std::string> types;
  for (const auto& [name, type] : kTypes) types.push_back(name);
  verb.add_option("--type", args->type, "of the weights (default: as the source's); blocks only with gguf")
      ->check(CLI::IsMember(types));
  verb.add_option("-o,--out", args->out, "file or directory to write; must not exist")->required()->type_name("OUT");
  verb.add_flag("--json", args->json, "JSON on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunExport(*args); }; });
}

}  // namespace scion
