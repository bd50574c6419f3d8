// moe-serve: loads a model and serves it until a signal comes.
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/model/domain_generations.h"
#include "server/options.h"
#include "server/sampling_defaults.h"
#include "server/server.h"
#include "server/shutdown_signals.h"

namespace scion {
namespace {

void StartLog(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("moe-serve"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
  spdlog::set_level(spdlog::level::from_str(level));
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "moe-serve: %s\n", std::string(status.message()).c_str());
  return kExitFailed;
}

std::string Address(const std::string& host, int port) {
  const bool is_ipv6 = absl::StrContains(host, ":");
  return absl::StrCat(is_ipv6 ? "[" : "", host, is_ipv6 ? "]:" : ":", port);
}

absl::StatusOr<ServedModel> Load(ServeOptions options) {
  absl::StatusOr<SamplingDefaults> defaults = LoadSamplingDefaults(options.engine.model_directory);
  if (!defaults.ok()) return defaults.status();
  options.engine.pack_cache.observer = [](const PackCacheNote& note) {
    spdlog::log(note.is_problem ? spdlog::level::warn : spdlog::level::info, note.text);
  };
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(options.engine);
  if (!engine.ok()) return engine.status();
  const EngineOptions& made = (*engine)->options();
  spdlog::info("loaded '{}' in {:.2f} s: {} domains, {} MB of weights, context {}, tier {}, {} threads",
               options.model_name, absl::ToDoubleSeconds(absl::Now() - start), (*engine)->spec().domains.size(),
               (*engine)->Stats().weight_bytes >> 20, (*engine)->spec().max_position_embeddings,
               made.tier ? kernels::TierName(*made.tier) : "unknown", made.num_threads);
  for (const DomainGeneration& generation : (*engine)->generations()) {
    spdlog::info("domain '{}': {}", generation.domain, ToString(generation));
  }
  return ServedModel{.engine = *std::move(engine), .name = options.model_name, .sampling_defaults = *defaults};
}

// What is served, and what of it the directory has no longer or has anew.
void ReportGenerations(const std::filesystem::path& directory, const std::vector<DomainGeneration>& served) {
  for (const DomainGeneration& generation : served) {
    spdlog::info("serving domain '{}': {}", generation.domain, ToString(generation));
  }
  const absl::StatusOr<std::vector<DomainGeneration>> on_disk = ReadDomainGenerations(directory);
  if (!on_disk.ok()) {
    spdlog::warn("what is on the disk can't be read: {}", std::string(on_disk.status().message()));
    return;
  }
  const std::vector<std::string> different = DifferentGenerations(served, *on_disk);
  for (const std::string& line : different) spdlog::info(line);
  spdlog::info(different.empty() ? "the disk has the same generations" : "a restart takes up what is on the disk");
}

absl::Status WritePortFile(const std::string& path, const std::string& addresses) {
  std::ofstream file(path);
  file << addresses << "\n";
  file.close();
  if (!file) return absl::InternalError(absl::StrCat("cannot write the port file ", path));
  return absl::OkStatus();
}

int Serve(const ServeOptions& options, ShutdownSignals& signals) {
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options.server);
  if (!server.ok()) return Fail(server.status());
  spdlog::info("loading {}", options.engine.model_directory.string());
  absl::StatusOr<ServedModel> model = Load(options);
  if (!model.ok()) return Fail(model.status());
  signals.OnHangup([directory = options.engine.model_directory, served = model->engine->generations()] {
    ReportGenerations(directory, served);
  });
  (*server)->Open(*std::move(model));

  const std::string addresses = absl::StrCat("http=", Address(options.server.http.host, (*server)->http_port()),
                                             " grpc=", Address(options.server.grpc.host, (*server)->grpc_port()));
  if (!options.port_file.empty()) {
    if (absl::Status status = WritePortFile(options.port_file, addresses); !status.ok()) return Fail(status);
  }
  std::printf("moe-serve: ready %s\n", addresses.c_str());
  std::fflush(stdout);

  const int signal = signals.WaitForFirst();
  spdlog::info("signal {}: {} requests in flight are finished, new ones refused; a second signal ends at once", signal,
               (*server)->requests_in_flight());
  (*server)->StartDraining();
  const bool finished = (*server)->WaitUntilIdle(options.drain_timeout);
  if (!finished) {
    spdlog::warn("{} requests were cut off after {:.0f} s (--drain-timeout)", (*server)->requests_in_flight(),
                 absl::ToDoubleSeconds(options.drain_timeout));
  }
  (*server)->Stop();
  return finished ? kExitDone : kExitFailed;
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) {
  scion::ServeOptions options;
  if (const std::optional<int> code = scion::ParseOptions(argc, argv, options)) return *code;
  // Before any thread is started: all of them inherit the mask.
  scion::ShutdownSignals signals;
  signal(SIGPIPE, SIG_IGN);
  // A file beyond the limit on their size is an error of the write, like a full disk.
  signal(SIGXFSZ, SIG_IGN);
  scion::StartLog(options.log_level);
  return scion::Serve(options, signals);
}
