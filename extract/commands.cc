#include "extract/commands.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>

#include "extract/digest_file.h"

namespace scion {

CancelOnSignal::CancelOnSignal() {
  struct sigaction action = {};
  action.sa_handler = [](int) { RequestCancel(); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

CancelOnSignal::~CancelOnSignal() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

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

void PrintJson(const Json& json) {
  std::fputs((json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n").c_str(), stdout);
}

CLI::Option* AddModel(CLI::App& verb, std::string& model) {
  return verb.add_option("model", model, "directory of the model")->type_name("MODEL");
}

CLI::Option* AddDomain(CLI::App& verb, std::string& domain) {
  return verb.add_option("--domain", domain, "name of the domain")->type_name("NAME");
}

CLI::Option* AddDomains(CLI::App& verb, std::vector<std::string>& domains) {
  return verb.add_option("--domain", domains, "domains to keep, separated by commas")
      ->delimiter(',')
      ->each([](const std::string& name) {
        if (name.empty()) throw CLI::ValidationError("a name is empty");
      })
      ->type_name("NAMES");
}

CLI::Option* AddOut(CLI::App& verb, std::string& out) {
  return verb.add_option("-o,--out", out, "directory to write; must not exist")->type_name("OUT");
}

}  // namespace scion
