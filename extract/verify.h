// Proves that a cut is its source, a graft its model and donor, or an upcycled model its dense parent in every domain:
// the bytes of every tensor first, then the bits of the logits on prompts that visit every expert of every sparse
// layer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/json.h"
#include "engine/kernels/kernels.h"
#include "engine/model/checkpoint.h"
#include "engine/model/weight_mode.h"
#include "extract/difference.h"
#include "extract/graft.h"

namespace scion {

struct GraftUnderTest {
  Donor donor;
  std::string as;  // the domain's name in the grafted model
};

struct VerifyOptions {
  std::filesystem::path cut;
  std::filesystem::path model;
  kernels::Tier tier = kernels::Tier::kPortable;
  WeightMode weights = WeightMode::kAsIs;
  int num_threads = 1;
  // Without it only hashes and logits are looked at. Tests switch it off, to see what the logits alone find.
  bool compare_bytes = true;
  // Instead of a cut, `cut` is a graft: the model with a domain of a donor.
  std::optional<GraftUnderTest> graft = {};
  std::string version;  // of this program
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

// Experts of one sparse layer, by the tokens that the cut's experts have counted.
struct LayerCoverage {
  int layer = 0;
  int experts = 0;
  int reachable = 0;  // those to which the route table leads at least one token
  int visited = 0;
};

struct VerifyReport {
  std::vector<Difference> differences;  // empty: the cut is its source
  bool upcycled = false;                // the source is dense, the cut has domains
  std::vector<std::string> domains;
  std::string model_lock_sha256;  // empty if there is no lock
  std::string cut_lock_sha256;
  std::map<std::string, std::string> model_files;  // path -> sha256, of what the cut has been compared with
  std::map<std::string, std::string> cut_files;
  // Of a graft.
  std::string donor_domain;
  std::string donor_lock_sha256;
  std::map<std::string, std::string> donor_files;
  int tensors = 0;
  uint64_t tensor_bytes = 0;
  int prompts = 0;                                             // 0 if the bytes differ: no prompt is run then
  int64_t positions = 0;                                       // compared, each with the whole vocabulary's logits
  std::map<std::string, std::vector<LayerCoverage>> coverage;  // by domain
};

// An error means that no verdict was reached: the model can't be opened, there is no directory at `cut`, or the machine
// lacks memory. Whatever is wrong with the cut itself is a difference.
absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options);

// Two steps of it that a graft's verification takes too: the hashes of the cut's files against its own lock, and the
// hashes of the files of a source, its trunk's and these domains' and the small ones, path -> sha256.
void CheckCutLock(const VerifyOptions& options, VerifyReport& report);
absl::Status HashSource(const Checkpoint& source, const std::vector<std::string>& domains, std::FILE* log,
                        std::map<std::string, std::string>& hashes);

// The certificate; its members are described in the folder's README. directory: of the certificate, from which it names
// the places of the models.
Json CertificateJson(const VerifyOptions& options, const VerifyReport& report,
                     const std::filesystem::path& directory = ".");

// One line for people: "identical: cut ..., 42 tensors ..." or "differs: ...".
std::string SummaryLine(const VerifyOptions& options, const VerifyReport& report);

}  // namespace scion
