// moe-extract verify: proves that a cut is its source.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/atomic_file.h"
#include "engine/base/status.h"
#include "extract/commands.h"
#include "extract/graft.h"
#include "extract/recheck.h"
#include "extract/verify.h"
#include "extract/verify_fold.h"

namespace scion {
namespace {

// "cut/" -> "cut.certificate.json"
std::string DefaultCertificatePath(std::string cut) {
  while (cut.size() > 1 && cut.ends_with('/')) cut.pop_back();
  return cut + ".certificate.json";
}

// Without CUT and MODEL: the files that a certificate lists.
int RunRecheck(const VerifyArguments& args) {
  const CancelOnSignal cancel;
  const absl::StatusOr<RecheckReport> report = Recheck(args.certificate, stderr);
  if (!report.ok()) return Fail(report.status());
  const bool same = report->differences.empty();
  PrintDifferences(report->differences);
  if (args.json) {
    Json differences = Json::array();
    for (const Difference& d : report->differences) differences.push_back({{"file", d.file}, {"what", d.what}});
    PrintJson({{"certificate", args.certificate},
               {"result", same ? "unchanged" : "changed"},
               {"differences", differences},
               {"time", report->time},
               {"files", report->files}});
  } else if (same) {
    std::printf("unchanged: all %d files are those that %s speaks of, of %s\n", report->files, args.certificate.c_str(),
                report->time.c_str());
  } else {
    std::printf("changed: %s%s\n", ToString(report->differences.front()).c_str(),
                report->differences.size() > 1
                    ? absl::StrFormat(" (and %d more)", report->differences.size() - 1).c_str()
                    : "");
  }
  return same ? kDone : kDiffers;
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
  if (!args.donor.empty()) options.graft = {.donor = ParseDonor(args.donor), .as = args.as};
  options.tier = *tier;
  options.weights = *ParseWeightMode(args.weights);
  options.num_threads = ThreadsOf(args);
  options.version = SCION_VERSION;
  options.now = absl::Now();
  options.log = stderr;
  const absl::StatusOr<VerifyReport> report = Verify(options);
  if (!report.ok()) return Fail(report.status());
  const std::string path = args.certificate.empty() ? DefaultCertificatePath(args.cut) : args.certificate;
  const std::filesystem::path place = args.no_certificate ? "." : std::filesystem::path(path).parent_path();
  const Json certificate = CertificateJson(options, *report, place);
  if (!args.no_certificate) {
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
  CLI::App& verb = *app.add_subcommand(
      "verify", "Proves that a cut is its source, or a graft its model and donor: all bytes, then the logits' bits.");
  verb.footer(
      "Example: moe-extract verify /tmp/cpp --against deploy/demo --certificate /tmp/cpp.json\n"
      "A graft: moe-extract verify /tmp/grafted --against deploy/demo --donor /tmp/cpp --as cpp2\n"
      "Later:   moe-extract verify --certificate /tmp/cpp.json    # are the files still those that were compared?");
  const auto args = std::make_shared<VerifyArguments>();
  CLI::Option* cut = verb.add_option("cut", args->cut, "directory of the cut or graft")->type_name("CUT");
  CLI::Option* against = verb.add_option("--against", args->model, "directory of the model that it was made of");
  against->type_name("MODEL")->needs(cut);
  cut->needs(against);
  CLI::Option* donor = verb.add_option("--donor", args->donor, "of a graft: the domain's model, and its name there");
  CLI::Option* as = verb.add_option("--as", args->as, "of a graft: the domain's name in it");
  donor->type_name("DONOR[@DOMAIN]")->needs(cut)->needs(as);
  as->type_name("NAME")->needs(donor);
  AddVerifyOptions(verb, *args);
  verb.add_option("--eval", args->eval, "of a fold: the text that it is measured on")->type_name("TEXT");
  verb.add_option("--max-kl", args->max_divergence, "of a fold: tolerated divergence, nats per token; default: 0.5");
  verb.add_flag("--json", args->json, "the certificate on stdout");
  verb.callback([args, &verb, &invocation] {
    if (verb.count("cut") > 0) {
      invocation.run = [args] { return RunVerify(*args); };
      return;
    }
    if (args->certificate.empty()) throw CLI::RequiredError("CUT and --against, or --certificate alone");
    if (verb.count("--no-certificate") + verb.count("--weights") + verb.count("--threads") > 0) {
      throw CLI::ExtrasError("verify", std::vector<std::string>{"--certificate alone compares hashes, no logits"});
    }
    invocation.run = [args] { return RunRecheck(*args); };
  });
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
