// The verbs of moe-extract. Each Add function describes one verb to the command-line parser and leaves what it does in
// the invocation. Results go to stdout, everything else to stderr.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/json.h"
#include "extract/difference.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace scion {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kDiffers = 3 };

struct Invocation {
  std::function<int()> run;  // set by the verb that was chosen; returns an ExitCode
};

void AddDensifyCommand(CLI::App& app, Invocation& invocation);
void AddDropCommand(CLI::App& app, Invocation& invocation);
void AddExportCommand(CLI::App& app, Invocation& invocation);
void AddGcCommand(CLI::App& app, Invocation& invocation);
void AddGraftCommand(CLI::App& app, Invocation& invocation);
void AddInspectCommand(CLI::App& app, Invocation& invocation);
void AddLockCommand(CLI::App& app, Invocation& invocation);
void AddLogCommand(CLI::App& app, Invocation& invocation);
void AddPlanCommand(CLI::App& app, Invocation& invocation);
void AddQuantizeCommand(CLI::App& app, Invocation& invocation);
void AddReportCommand(CLI::App& app, Invocation& invocation);
void AddRollbackCommand(CLI::App& app, Invocation& invocation);
void AddSliceCommand(CLI::App& app, Invocation& invocation);
void AddUpcycleCommand(CLI::App& app, Invocation& invocation);
void AddVerifyCommand(CLI::App& app, Invocation& invocation);
// Without a verb: slices, then verifies.
void AddCutOptions(CLI::App& app, Invocation& invocation);

// What several verbs share.

// The first SIGINT or SIGTERM makes what runs end with Cancelled, so that nothing is left behind; a second one kills.
class CancelOnSignal {
 public:
  CancelOnSignal();
  ~CancelOnSignal();  // as before
  CancelOnSignal(const CancelOnSignal&) = delete;
  CancelOnSignal& operator=(const CancelOnSignal&) = delete;
};

// Says why; returns kFailed.
int Fail(const absl::Status& status);

void PrintDifferences(const std::vector<Difference>& differences);
void PrintJson(const Json& json);

// The positional MODEL.
CLI::Option* AddModel(CLI::App& verb, std::string& model);
// --domain NAME
CLI::Option* AddDomain(CLI::App& verb, std::string& domain);
// --domain NAMES, of which none is empty.
CLI::Option* AddDomains(CLI::App& verb, std::vector<std::string>& domains);
// -o, --out
CLI::Option* AddOut(CLI::App& verb, std::string& out);

struct SliceArguments {
  std::string model;
  std::vector<std::string> domains;
  std::string out;
  bool link = false;
  bool json = false;
};

int RunSlice(const SliceArguments& args);

struct VerifyArguments {
  std::string cut;
  std::string model;
  std::string donor;  // of a graft, else empty
  std::string as;
  std::string certificate;  // empty: CUT.certificate.json
  bool no_certificate = false;
  std::string weights = "as-is";
  std::string eval;             // of a fold: the text that it is measured on
  double max_divergence = 0.5;  // of a fold
  int threads = 0;              // 0: all processors
  bool json = false;
};

// --certificate, --no-certificate, --weights and --threads.
void AddVerifyOptions(CLI::App& verb, VerifyArguments& args);
int RunVerify(const VerifyArguments& args);

}  // namespace scion
