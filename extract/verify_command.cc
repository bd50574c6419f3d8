// moe-extract verify: proves that a cut is its source.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "engine/base/atomic_file.h"
#include "engine/base/status.h"
#include "extract/commands.h"
#include "extract/verify.h"
#include "extract/verify_fold.h"

namespace scion {
namespace {

// "cut/" -> "cut.certificate.json"
std::string DefaultCertificatePath(std::string cut) {
  while (cut.size() > 1 && cut.ends_with('/')) cut.pop_back();
  return cut + ".certificate.json";
}

int ThreadsOf(const VerifyArguments& args) {
  return args.threads > 0 ? args.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int RunVerifyFold(const VerifyArguments& args, kernels::Tier tier) {
  const VerifyFoldOptions options{.fold = args.cut,
                                  .model = args.model,
                                  .eval = args.eval,
                                  .max_divergence = args.max_divergence,
                                  .tier = tier,
                                  .num_threads = ThreadsOf(args),
                                  .log = stderr};
  const absl::StatusOr<VerifyFoldReport> report = VerifyFold(options);
  if (!report.ok()) return Fail(report.status());
  PrintDifferences(report->differences);
  if (args.json) {
    PrintJson(ToJson(options, *report));
  } else {
    std::printf("%s: fold %s of %s in %s", report->differences.empty() ? "as stated" : "differs", args.cut.c_str(),
                report->domain.c_str(), args.model.c_str());
    if (report->positions > 0) std::printf(", the bits of %lld positions", static_cast<long long>(report->positions));
    if (const auto& c = report->comparison) {
      std::printf(", perplexity ratio %.4f, KL %.4f nats, top-1 agreement %.1f%%", c->ratio(), c->kl_divergence,
                  100 * c->top1_agreement);
    }
    std::printf("\n");
  }
  return report->differences.empty() ? kDone : kDiffers;
}

}  // namespace

int RunVerify(const VerifyArguments& args) {
  const absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  if (IsFold(args.cut)) return RunVerifyFold(args, *tier);
  VerifyOptions options;
  options.cut = args.cut;
  options.model = args.model;
  options.tier = *tier;
  options.weights = *ParseWeightMode(args.weights);
  options.num_threads = ThreadsOf(args);
  options.version = SCION_VERSION;
  options.now = absl::Now();
  options.log = stderr;
  const absl::StatusOr<VerifyReport> report = Verify(options);
  if (!report.ok()) return Fail(report.status());
  const Json certificate = CertificateJson(options, *report);
  if (!args.no_certificate) {
    const std::string path = args.certificate.empty() ? DefaultCertificatePath(args.cut) : args.certificate;
    const std::string text = certificate.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
    if (absl::Status status = WriteFileAtomically(path, text); !status.ok()) return Fail(status);
    std::fprintf(stderr, "moe-extract: certificate: %s\n", path.c_str());
  }
  PrintDifferences(report->differences);
  if (args.json) {
    PrintJson(certificate);
  } else {
    std::printf("%s\n", SummaryLine(options, *report).c_str());
  }
  return report->differences.empty() ? kDone : kDiffers;
}

void AddVerifyOptions(CLI::App& verb, VerifyArguments& args) {
  verb.add_option("--certificate", args.certificate, "where to write it; default: CUT.certificate.json")
      ->type_name("FILE");
  verb.add_flag("--no-certificate", args.no_certificate, "write none");
  std::set<std::string> modes;
  for (WeightMode mode : kAllWeightModes) modes.emplace(WeightModeName(mode));
  verb.add_option("--weights", args.weights, "weights in memory while comparing logits; default: as-is")
      ->check(CLI::IsMember(modes));
  verb.add_option("--threads", args.threads, "default: all processors")->check(CLI::Range(1, 1024));
}

void AddVerifyCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("verify", "Proves that a cut is its source: all bytes, then the logits' bits.");
  verb.footer("Example: moe-extract verify /tmp/cpp --against deploy/demo --certificate /tmp/cpp.json");
  const auto args = std::make_shared<VerifyArguments>();
  verb.add_option("cut", args->cut, "directory of the cut")->required()->type_name("CUT");
  verb.add_option("--against", args->model, "directory of the model that it was cut from")
      ->required()
      ->type_name("MODEL");
  AddVerifyOptions(verb, *args);
  verb.add_option("--eval", args->eval, "of a fold: the text that it is measured on")->type_name("TEXT");
  verb.add_option("--max-kl", args->max_divergence, "of a fold: tolerated divergence, nats per token; default: 0.5");
  verb.add_flag("--json", args->json, "the certificate on stdout");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunVerify(*args); }; });
}

void AddCutOptions(CLI::App& app, Invocation& invocation) {
  const auto slice = std::make_shared<SliceArguments>();
  const auto verify = std::make_shared<VerifyArguments>();
  AddModel(app, slice->model);
  AddDomains(app, slice->domains);
  AddOut(app, slice->out);
  AddVerifyOptions(app, *verify);
  app.callback([&app, &invocation, slice, verify] {
    if (!app.get_subcommands().empty()) {
      if (app.count("model") + app.count("--domain") + app.count("--out") > 0) {
        throw CLI::ExtrasError("moe-extract", std::vector<std::string>{"options of a verb come after the verb"});
      }
      return;
    }
    for (const char* name : {"model", "--domain", "--out"}) {
      if (app.count(name) == 0) throw CLI::RequiredError(name);
    }
    invocation.run = [slice, verify] {
      if (const int code = RunSlice(*slice); code != kDone) return code;
      verify->cut = slice->out;
      verify->model = slice->model;
      return RunVerify(*verify);
    };
  });
}

}  // namespace scion
