// moe-extract: cuts a domain out of a model, proves that the cut is exact, quantises a model, shows what one holds.
// Results go to stdout, everything else to stderr.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/atomic_file.h"
#include "engine/base/status.h"
#include "engine/kernels/kernels.h"
#include "extract/digest_file.h"
#include "extract/inspect.h"
#include "extract/quantize.h"
#include "extract/sign.h"
#include "extract/slice.h"
#include "extract/verify.h"

namespace scion {
namespace {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kDiffers = 3 };

// As given on the command line.
struct Arguments {
  std::string model;
  std::vector<std::string> domains;
  std::string out;
  std::string cut;
  std::string certificate;
  bool no_certificate = false;
  std::string weights = "as-is";
  std::string type;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  bool json = false;
  bool check = false;
  bool replace = false;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "moe-extract: %s\n", std::string(status.message()).c_str());
  return kFailed;
}

void PrintDifferences(const std::vector<Difference>& differences) {
  constexpr size_t kMaxLines = 20;
  for (size_t i = 0; i < std::min(differences.size(), kMaxLines); ++i) {
    std::fprintf(stderr, "moe-extract: differs: %s\n", ToString(differences[i]).c_str());
  }
  if (differences.size() > kMaxLines) {
    std::fprintf(stderr, "moe-extract: and %zu more differences\n", differences.size() - kMaxLines);
  }
}

int RunInspect(const Arguments& args) {
  // The hashes first: they name the damaged file and tensor also where the directory no longer opens.
  if (args.check) {
    const absl::StatusOr<std::vector<Difference>> differences = CheckHashes(args.model, stderr);
    if (!differences.ok()) return Fail(differences.status());
    if (!differences->empty()) {
      PrintDifferences(*differences);
      return kFailed;
    }
  }
  absl::StatusOr<Json> inspection = Inspect(args.model);
  if (!inspection.ok()) return Fail(inspection.status());
  if (args.check) (*inspection)["check"] = "ok";
  const std::string text = args.json
                               ? inspection->dump(1) + "\n"
                               : InspectTable(*inspection) + (args.check ? "check: all hashes as in the lock\n" : "");
  std::fputs(text.c_str(), stdout);
  return kDone;
}

int RunLock(const Arguments& args) {
  const absl::StatusOr<LockFile> lock =
      Sign({.model = args.model, .replace = args.replace, .version = SCION_VERSION, .now = absl::Now(), .log = stderr});
  if (!lock.ok()) return Fail(lock.status());
  std::printf("%s/%s: %zu files, lock_sha256 %s\n", args.model.c_str(), std::string(kLockFileName).c_str(),
              lock->files.size(), LockSha256(*lock).c_str());
  return kDone;
}

// The first SIGINT or SIGTERM ends the copying, so that nothing is left behind; a second one kills.
void CancelOnSignal() {
  struct sigaction action = {};
  action.sa_handler = [](int) { RequestCancel(); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int RunSlice(const Arguments& args) {
  CancelOnSignal();
  const absl::StatusOr<SliceResult> result = Slice({.model = args.model,
                                                    .out = args.out,
                                                    .domains = args.domains,
                                                    .version = SCION_VERSION,
                                                    .now = absl::Now(),
                                                    .log = stderr});
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  if (!result.ok()) return Fail(result.status());
  std::printf("%s: domains %s of %s, %.1f of %.1f MB\n", args.out.c_str(), absl::StrJoin(result->domains, ",").c_str(),
              args.model.c_str(), static_cast<double>(result->cut_bytes) * 1e-6,
              static_cast<double>(result->model_bytes) * 1e-6);
  return kDone;
}

int RunQuantize(const Arguments& args) {
  CancelOnSignal();
  const absl::StatusOr<QuantizeResult> result = Quantize({.model = args.model,
                                                          .out = args.out,
                                                          .type = args.type == "q4_0" ? DType::kQ4_0 : DType::kQ8_0,
                                                          .version = SCION_VERSION,
                                                          .now = absl::Now(),
                                                          .log = stderr});
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  if (!result.ok()) return Fail(result.status());
  if (args.json) {
    const Json json = {{"out", args.out},
                       {"type", args.type},
                       {"model", args.model},
                       {"quantized", result->quantized},
                       {"bytes", result->bytes},
                       {"left_as_is", result->left_as_is},
                       {"model_bytes", result->model_bytes}};
    std::fputs((json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n").c_str(), stdout);
    return kDone;
  }
  const std::string left =
      result->left_as_is == 0 ? "" : absl::StrFormat(" (%d stay: no whole blocks in a row)", result->left_as_is);
  std::printf("%s: %d matrices of %s in %s%s, %.1f of %.1f MB\n", args.out.c_str(), result->quantized,
              args.model.c_str(), args.type.c_str(), left.c_str(), static_cast<double>(result->bytes) * 1e-6,
              static_cast<double>(result->model_bytes) * 1e-6);
  return kDone;
}

// "cut/" -> "cut.certificate.json"
std::string DefaultCertificatePath(std::string cut) {
  while (cut.size() > 1 && cut.ends_with('/')) cut.pop_back();
  return cut + ".certificate.json";
}

int RunVerify(const Arguments& args) {
  const absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
  if (!tier.ok()) return Fail(tier.status());
  VerifyOptions options;
  options.cut = args.cut;
  options.model = args.model;
  options.tier = *tier;
  options.weights = *ParseWeightMode(args.weights);
  options.num_threads = args.threads;
  options.version = SCION_VERSION;
  options.now = absl::Now();
  options.log = stderr;
  const absl::StatusOr<VerifyReport> report = Verify(options);
  if (!report.ok()) return Fail(report.status());
  const Json certificate = CertificateJson(options, *report);
  const std::string text = certificate.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!args.no_certificate) {
    const std::string path = args.certificate.empty() ? DefaultCertificatePath(args.cut) : args.certificate;
    if (absl::Status status = WriteFileAtomically(path, text); !status.ok()) return Fail(status);
    std::fprintf(stderr, "moe-extract: certificate: %s\n", path.c_str());
  }
  PrintDifferences(report->differences);
  std::fputs(args.json ? text.c_str() : (SummaryLine(options, *report) + "\n").c_str(), stdout);
  return report->differences.empty() ? kDone : kDiffers;
}

void AddModel(CLI::App& app, Arguments& args) {
  app.add_option("model", args.model, "directory of the model")->required()->type_name("MODEL");
}

CLI::Option* AddDomains(CLI::App& app, Arguments& args) {
  return app.add_option("--domain", args.domains, "domains to keep, separated by commas")
      ->delimiter(',')
      ->type_name("NAMES");
}

CLI::Option* AddOut(CLI::App& app, Arguments& args) {
  return app.add_option("-o,--out", args.out, "directory to write; must not exist")->type_name("OUT");
}

void AddVerifyOptions(CLI::App& app, Arguments& args) {
  app.add_option("--certificate", args.certificate, "where to write it; default: CUT.certificate.json")
      ->type_name("FILE");
  app.add_flag("--no-certificate", args.no_certificate, "write none");
  std::set<std::string> modes;
  for (WeightMode mode : kAllWeightModes) modes.emplace(WeightModeName(mode));
  app.add_option("--weights", args.weights, "weights in memory while comparing logits; default: as-is")
      ->check(CLI::IsMember(modes));
  app.add_option("--threads", args.threads, "default: all processors")->check(CLI::Range(1, 1024));
}

int Main(int argc, char** argv) {
  Arguments args;
  CLI::App app(
      "Cuts domains out of a Scion model, and proves that a cut gives the same bits.\n"
      "Without a verb: slices, then verifies.\n"
      "Example: moe-extract deploy/demo --domain cpp -o /tmp/cpp",
      "moe-extract");
  app.footer("Exit codes: 0 done, 1 failed, 2 usage, 3 verify differs.");
  app.set_version_flag("--version", "moe-extract " SCION_VERSION);
  app.add_option("model", args.model, "directory of the model")->type_name("MODEL");
  AddDomains(app, args);
  AddOut(app, args);
  AddVerifyOptions(app, args);

  CLI::App* inspect = app.add_subcommand("inspect", "Shows what a model holds.");
  inspect->footer("Example: moe-extract inspect deploy/demo --check");
  AddModel(*inspect, args);
  inspect->add_flag("--json", args.json, "JSON on stdout");
  inspect->add_flag("--check", args.check, "compare every file with the lock's hashes; exit 1 if one differs");

  CLI::App* lock = app.add_subcommand("lock", "Writes scion.lock.json for a model that has none.");
  lock->footer("Example: moe-extract lock my-model");
  AddModel(*lock, args);
  lock->add_flag("--replace", args.replace, "sign the files as they are now, whatever the old lock says");

  CLI::App* quantize = app.add_subcommand("quantize", "Rounds a model's matrices to blocks of 8 or 4 bits.");
  quantize->footer("Example: moe-extract quantize deploy/demo --type q4_0 -o /tmp/demo-q4");
  AddModel(*quantize, args);
  quantize->add_option("--type", args.type, "q8_0, or q4_0 with head and embedding in q8_0")
      ->required()
      ->check(CLI::IsMember({"q8_0", "q4_0"}));
  AddOut(*quantize, args)->required();
  quantize->add_flag("--json", args.json, "JSON on stdout");

  CLI::App* slice = app.add_subcommand("slice", "Cuts domains out as a model of their own.");
  slice->footer("Example: moe-extract slice deploy/demo --domain cpp,python -o /tmp/code");
  AddModel(*slice, args);
  AddDomains(*slice, args)->required();
  AddOut(*slice, args)->required();

  CLI::App* verify = app.add_subcommand("verify", "Proves that a cut is its source: all bytes, then the logits' bits.");
  verify->footer("Example: moe-extract verify /tmp/cpp --against deploy/demo --certificate /tmp/cpp.json");
  verify->add_option("cut", args.cut, "directory of the cut")->required()->type_name("CUT");
  verify->add_option("--against", args.model, "directory of the model that it was cut from")
      ->required()
      ->type_name("MODEL");
  AddVerifyOptions(*verify, args);
  verify->add_flag("--json", args.json, "the certificate on stdout");
  app.require_subcommand(0, 1);

  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      for (const char* name : {"model", "--domain", "--out"}) {
        if (app.count(name) == 0) throw CLI::RequiredError(name);
      }
    } else if (app.count("model") + app.count("--domain") + app.count("--out") > 0) {
      throw CLI::ExtrasError("moe-extract", std::vector<std::string>{"options of a verb come after the verb"});
    }
    for (const std::string& domain : args.domains) {
      if (domain.empty()) throw CLI::ValidationError("--domain", "a name is empty");
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }

  if (inspect->parsed()) return RunInspect(args);
  if (lock->parsed()) return RunLock(args);
  if (quantize->parsed()) return RunQuantize(args);
  if (slice->parsed()) return RunSlice(args);
  if (verify->parsed()) return RunVerify(args);
  if (const int code = RunSlice(args); code != kDone) return code;
  args.cut = args.out;
  return RunVerify(args);
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) {
  const int code = scion::Main(argc, argv);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "moe-extract: the results can't be written to standard output\n");
    return scion::kFailed;
  }
  return code;
}
