// Runs prompts that visit every expert of a domain through two loaded models and compares the logits bit by bit.
#pragma once

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "extract/verify.h"

namespace scion {

struct DomainUnderTest {
  Model* model;
  std::string domain;  // its name there
};

// Adds to the report: prompts, positions, coverage under the cut's name of the domain, and a difference if there is
// one. source_name: what that calls the other model. cut_files: the cut's, for its route tables. InternalError if the
// prompts missed an expert that some token reaches; ResourceExhausted if the machine lacks memory.
absl::Status CompareDomain(const DomainUnderTest& source, const std::string& source_name, const Checkpoint& cut_files,
                           const DomainUnderTest& cut, std::FILE* log, VerifyReport& report);

}  // namespace scion
