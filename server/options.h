// The command line of moe-serve.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/server.h"

namespace scion {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

struct ServeOptions {
  EngineOptions engine;
  ServerOptions server;
  std::string model_name;  // filled in
  absl::Duration drain_timeout = absl::Seconds(30);
  std::string port_file;  // empty: none
  std::string log_level = "info";
};

// Parses into `options`. If the process is to end here (--help, --version, a usage error), what there is to say has
// been printed, and the exit code is returned.
std::optional<int> ParseOptions(int argc, char** argv, ServeOptions& options);

}  // namespace scion
