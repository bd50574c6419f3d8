// Puts a domain of another model of the same trunk into a model, as a new domain or in the place of one. What the model
// had before keeps its files, and with them every bit of its other domains' answers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/checkpoint.h"

namespace scion {

struct Donor {
  std::filesystem::path model;
  std::string domain;  // empty: the only one that it has
};

// "models/law@contracts", "models/law". A directory whose own name has an '@' is itself.
Donor ParseDonor(std::string_view text);

// Index into the donor's domains. NotFound lists those that there are; InvalidArgument too, if there are several and
// none is named; FailedPrecondition: a model without domains.
absl::StatusOr<int> ChooseDonorDomain(const Checkpoint& donor, const std::string& name);

struct GraftOptions {
  std::filesystem::path model;
  Donor donor;
  std::string as;                            // the domain's name in the model
  std::optional<std::filesystem::path> out;  // a new directory; nothing: MODEL itself is changed
  std::string version;                       // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct GraftResult {
  std::string donor_domain;
  bool replaced = false;  // the model had a domain of that name
  int num_experts = 0;
  uint64_t generation = 1;
  std::string file;    // relative: "domains/code.g2.safetensors"
  uint64_t bytes = 0;  // of it
};

// NotFound: no such model, donor or donor's domain (lists those that there are). InvalidArgument: `as` is no domain's
// name, the donor has several domains and none is named, OUT inside MODEL or DONOR. FailedPrecondition: another trunk,
// shape or vocabulary (CheckDonor); a model or donor without domains; in place, a model without a lock, or one that
// another run writes. AlreadyExists: OUT is there. DataLoss: a damaged model or donor. PermissionDenied,
// ResourceExhausted: what is to be written can't be. Cancelled after RequestCancel. None leaves anything behind.
absl::StatusOr<GraftResult> Graft(const GraftOptions& options);

}  // namespace scion
