// moe-extract lock: signs a directory.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "extract/commands.h"
#include "extract/sign.h"

namespace scion {
namespace {

struct LockArguments {
  std::string model;
  bool replace = false;
};

int RunLock(const LockArguments& args) {
  const absl::StatusOr<LockFile> lock =
      Sign({.model = args.model, .replace = args.replace, .version = SCION_VERSION, .now = absl::Now(), .log = stderr});
  if (!lock.ok()) return Fail(lock.status());
  std::printf("%s/%s: %zu files, lock_sha256 %s\n", args.model.c_str(), std::string(kLockFileName).c_str(),
              lock->files.size(), LockSha256(*lock).c_str());
  return kDone;
}

}  // namespace

void AddLockCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("lock", "Writes scion.lock.json for a model that has none.");
  verb.footer("Example: moe-extract lock my-model");
  const auto args = std::make_shared<LockArguments>();
  AddModel(verb, args->model)->required();
  verb.add_flag("--replace", args->replace, "sign the files as they are now, whatever the old lock says");
  verb.callback([args, &invocation] { invocation.run = [args] { return RunLock(*args); }; });
}

}  // namespace scion
