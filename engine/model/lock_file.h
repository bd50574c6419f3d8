// scion.lock.json: which domains, files and generations a Scion directory consists of, the size and sha256 of every
// file and of every tensor's data, and the lineage. Written last, so a directory with a lock is whole.
//
//   {
//    "format": 1,
//    "domains": {"cpp": {"file": "domains/cpp.g2.safetensors", "generation": 2}},
//    "files": {
//     "config.json": {"size": 870, "sha256": "..."},
//     "trunk.safetensors": {"size": 6105328, "sha256": "...", "tensors": {"model.norm.weight": "...", ...}}, ...
//    },
//    "earlier": {"cpp": [{"file": "domains/cpp.safetensors", "generation": 1, "num_experts": 4, "size": 7104512,
//                         "sha256": "...", "quantization_config": {...}}]},
//    "lineage": [{"verb": "slice", "time": "2026-11-23T21:00:00Z", "version": "0.1.0", "source": "demo",
//                 "source_lock_sha256": "...", "domains": ["cpp"]}],
//    "lock_sha256": "..."
//   }
//
// Paths are relative, with '/', and lead nowhere outside. A file with "tensors" is a data file; the data files that no
// domain names are the trunk's. The other files (config, tokenizer, index) have size and sha256 only. "earlier", absent
// if empty, has the other generations of domains that are still on the disk, by which a graft or a drop can be taken
// back: files that no reader opens, what config.json has to say of them, and the block types of their tensors where
// they are quantised (quantization_spec.h). lineage is in order of time, oldest first. lock_sha256 is the sha256 of the
// lock's own text without the lock_sha256 member: the text is canonical (keys sorted, one space of indentation, a
// newline at the end), so one flipped byte is found.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/quantization_spec.h"

namespace scion {

inline constexpr std::string_view kLockFileName = "scion.lock.json";
inline constexpr uint64_t kMaxLockFileBytes = 32 << 20;

struct LockFile {
  struct Domain {
    std::string file;
    uint64_t generation = 1;
  };
  struct File {
    uint64_t size = 0;
    std::string sha256;
    bool is_data = false;
    std::map<std::string, std::string> tensors;  // name -> sha256 of the data; empty unless is_data
  };
  // Of a domain, on the disk but not in use.
  struct Generation {
    std::string file;
    uint64_t generation = 1;
    int num_experts = 0;
    uint64_t size = 0;
    std::string sha256;
    std::optional<QuantizationSpec> quantization;
  };
  struct LineageEntry {
    std::string verb;                // "create", "slice", "graft", ...
    std::string time;                // RFC 3339, UTC
    std::string version;             // of the program that did it
    std::string source;              // what people call the source: a directory's name
    std::string source_lock_sha256;  // the source's lock_sha256; empty if it had no lock
    std::vector<std::string> domains;
  };

  std::map<std::string, Domain> domains;
  std::map<std::string, File> files;                       // by path
  std::map<std::string, std::vector<Generation>> earlier;  // by domain, by generation; no list is empty
  std::vector<LineageEntry> lineage;
};

// DataLoss, naming the place, unless the text is a lock in canonical form whose lock_sha256 is right; ResourceExhausted
// beyond kMaxLockFileBytes or more values than kMaxTensors tensors need.
absl::StatusOr<LockFile> ParseLockFile(std::string_view text);

// The canonical text, lock_sha256 included.
std::string SerializeLockFile(const LockFile& lock);

// The lock_sha256 of the canonical text: what a lineage entry calls source_lock_sha256.
std::string LockSha256(const LockFile& lock);

// A path inside a model directory: relative, normal, printable, at most 1,024 bytes, without "." or ".." parts.
bool IsSafeRelativePath(std::string_view path);

}  // namespace scion
