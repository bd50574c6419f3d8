// Which file is which generation of a domain, in the lock of a model that changes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "engine/model/checkpoint.h"
#include "engine/model/lock_file.h"

namespace scion {

struct NewGeneration {
  uint64_t generation = 1;
  std::string path;  // "domains/code.safetensors", "domains/code.g2.safetensors"
};

// The generation after all that the lock (null: none) and the spec know of, under a name that is free in the directory.
NewGeneration NextGeneration(const Checkpoint& model, std::string_view domain);

// Takes the domain of `model` out of the lock's files and remembers it among the earlier generations.
void RetireDomain(const Checkpoint& model, const std::string& domain, LockFile& lock);

// The model's domain of that name; NotFound lists those that there are.
absl::StatusOr<int> FindDomain(const Checkpoint& model, std::string_view domain);

// FailedPrecondition, naming its place, unless the model keeps its domains in files of their own.
absl::Status NeedsDomainFiles(const Checkpoint& model);

// "alpha, beta"
std::string DomainNames(const Checkpoint& model);

}  // namespace scion
