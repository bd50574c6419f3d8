#include "extract/collect_garbage.h"

#include <algorithm>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/generations.h"
#include "extract/lock_builder.h"
#include "extract/model_transaction.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

// Takes all but the latest `keep` generations of each domain out of the lock; path -> bytes of those that went.
std::map<std::string, uint64_t> Forget(LockFile& lock, int keep) {
  std::map<std::string, uint64_t> forgotten;
  for (auto& [domain, generations] : lock.earlier) {
    while (generations.size() > static_cast<size_t>(keep)) {
      forgotten[generations.front().file] = generations.front().size;
      generations.erase(generations.begin());
    }
  }
  std::erase_if(lock.earlier, [](const auto& domain) { return domain.second.empty(); });
  return forgotten;
}

// Data files in domains/ of which the lock says nothing.
absl::Status FindStrangers(const fs::path& model, const LockFile& lock, std::map<std::string, uint64_t>& found) {
  std::set<std::string_view> known;
  for (const auto& [domain, generations] : lock.earlier) {
    for (const LockFile::Generation& generation : generations) known.insert(generation.file);
  }
  std::error_code error;
  fs::directory_iterator it(model / "domains", error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string path = "domains/" + it->path().filename().string();
    if (!path.ends_with(".safetensors") || lock.files.contains(path) || known.contains(path)) continue;
    if (!it->is_regular_file(error) || error) continue;
    found.emplace(path, it->file_size(error));
  }
  return error ? ErrnoStatus(error.value(), "list", model / "domains") : absl::OkStatus();
}

}  // namespace

absl::StatusOr<CollectGarbageResult> CollectGarbage(const CollectGarbageOptions& options) {
  SCION_ASSIGN_OR_RETURN(ModelTransaction transaction, ModelTransaction::Begin(options.model));
  const Checkpoint& model = transaction.before();
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(model));
  std::map<std::string, uint64_t> garbage = Forget(transaction.lock(), options.keep);
  SCION_RETURN_IF_ERROR(FindStrangers(options.model, transaction.lock(), garbage));
  CollectGarbageResult result;
  for (const auto& [path, bytes] : garbage) result.removed.push_back({path, bytes});
  if (options.dry_run || garbage.empty()) return result;
  for (const auto& [path, bytes] : garbage) transaction.RemoveDataFile(path);
  std::vector<std::string> domains;
  for (const DomainSpec& domain : model.spec().domains) domains.push_back(domain.name);
  SCION_RETURN_IF_ERROR(transaction.Commit(model.config(), ModelTransaction::Order::kLockFirst,
                                           {.verb = "gc",
                                            .time = FormatUtc(options.now),
                                            .version = options.version,
                                            .source = ModelName(options.model),
                                            .source_lock_sha256 = LockSha256(*model.lock()),
                                            .domains = std::move(domains)}));
  return result;
}

}  // namespace scion
