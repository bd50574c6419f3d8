// Which generation of each domain a model directory has, or had when it was opened: what a server says of what it
// serves and of what lies on the disk by now.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"

namespace scion {

struct DomainGeneration {
  std::string domain;
  uint64_t generation = 1;
  std::string file;    // relative to the directory; empty if the domain has no file of its own
  std::string sha256;  // of the file, as the lock says; empty without a lock

  bool operator==(const DomainGeneration&) const = default;
};

// In the spec's order.
std::vector<DomainGeneration> DomainGenerations(const Checkpoint& checkpoint);

// Of what lies there now. Errors as Checkpoint::Open.
absl::StatusOr<std::vector<DomainGeneration>> ReadDomainGenerations(const std::filesystem::path& model);

// "generation 2 (domains/code.g2.safetensors, sha256 0123456789ab)"
std::string ToString(const DomainGeneration& generation);

// One line per domain that is not on the disk what it is in the server, or only one of them has: "domain 'code':
// serving generation 1 (...), on disk generation 2 (...)". Empty if both are the same.
std::vector<std::string> DifferentGenerations(const std::vector<DomainGeneration>& served,
                                              const std::vector<DomainGeneration>& on_disk);

}  // namespace scion
