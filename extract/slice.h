// The exact cut: one or several domains of a model as a model of their own. Data files are copied whole, or linked,
// never re-encoded; config, index and lock are written anew. OUT is built beside its place and renamed: it is either
// absent or whole, whatever happens.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace scion {

struct SliceOptions {
  std::filesystem::path model;
  std::filesystem::path out;
  std::vector<std::string> domains;  // to keep; the cut has them in the model's order
  // Reflinks or hard links to the model's data files instead of copies. Nothing is read: hashes are those of the
  // model's lock.
  bool link = false;
  std::string version;  // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct SliceResult {
  std::vector<std::string> domains;
  uint64_t cut_bytes = 0;    // of the data files
  uint64_t model_bytes = 0;  // of the model's
  int reflinks = 0;          // data files that share the model's blocks,
  int hard_links = 0;        // and those that are the model's files under another name
};

// NotFound: no such model or domain (lists those that exist). AlreadyExists: OUT is there. InvalidArgument: OUT inside
// MODEL, a domain named twice. FailedPrecondition: a model without domains; to be linked, but without a lock or in
// another file system. DataLoss: a damaged model, a file that is
// not what the model's lock says included. PermissionDenied, ResourceExhausted: OUT can't be written. All name the
// path, and none leaves anything behind.
absl::StatusOr<SliceResult> Slice(const SliceOptions& options);

}  // namespace scion
