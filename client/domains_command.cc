// moe-client domains: what the server serves.
#include <CLI/CLI.hpp>
#include <ostream>

#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "nlohmann/json.hpp"

namespace scion::client {
namespace {

void PrintJson(const v1::ListDomainsResponse& response, std::ostream& out) {
  nlohmann::json json = {
      {"model", response.model()}, {"default_domain", response.default_domain()}, {"domains", nlohmann::json::array()}};
  for (const v1::Domain& domain : response.domains()) {
    json["domains"].push_back({{"name", domain.name()},
                               {"num_experts", domain.num_experts()},
                               {"generation", domain.generation()},
                               {"weight_bytes", domain.weight_bytes()},
                               {"requests", domain.requests()},
                               {"prompt_tokens", domain.prompt_tokens()},
                               {"generated_tokens", domain.generated_tokens()}});
  }
  out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

void PrintTable(const v1::ListDomainsResponse& response, std::ostream& out) {
  size_t width = std::string("domain").size();
  for (const v1::Domain& domain : response.domains()) width = std::max(width, domain.name().size());
  out << "model " << response.model() << "\n";
  out << absl::StreamFormat("  %-*s  %7s  %10s  %11s  %8s  %13s  %16s\n", static_cast<int>(width), "domain", "experts",
                            "generation", "weights MiB", "requests", "prompt tokens", "generated tokens");
  for (const v1::Domain& domain : response.domains()) {
    out << absl::StreamFormat("%s %-*s  %7d  %10d  %11.1f  %8d  %13d  %16d\n",
                              domain.name() == response.default_domain() ? "*" : " ", static_cast<int>(width),
                              domain.name(), domain.num_experts(), domain.generation(),
                              static_cast<double>(domain.weight_bytes()) / (1 << 20), domain.requests(),
                              domain.prompt_tokens(), domain.generated_tokens());
  }
  out << "* serves requests that name no domain\n";
}

}  // namespace

void AddDomainsCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("domains", "Lists the domains that the server has.");
  AddCommonOptions(verb, invocation);
  verb.footer("Example:\n  moe-client domains --json");
  verb.callback([&invocation] {
    invocation.run = [&invocation](Client& client) {
      const absl::StatusOr<v1::ListDomainsResponse> response = client.ListDomains(invocation.call_options());
      if (!response.ok()) return response.status();
      (invocation.json ? PrintJson : PrintTable)(*response, invocation.terminal.out);
      return absl::OkStatus();
    };
  });
}

}  // namespace scion::client
