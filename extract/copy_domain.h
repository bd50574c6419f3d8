// Copies a domain's file from one model into another, under the name that the domain has there.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "extract/digest_file.h"
#include "extract/new_file.h"
#include "extract/progress.h"

namespace scion {

struct CopiedDomain {
  FileDigest digest;                         // of what was written
  uint64_t tensor_bytes = 0;                 // of the tensors' data
  std::map<std::string, DType> block_types;  // of tensors that are blocks, under their new names
};

// `source` and its domain `domain`, under the name `as` into `copy`, which is finished. The tensors' data are copied as
// they are; the header only if the name stays, else it is written with the new names. DataLoss: the source's file is
// not what its lock says. Cancelled after RequestCancel. Needs a few MiB beside the header.
absl::StatusOr<CopiedDomain> CopyDomain(const Checkpoint& source, int domain, std::string_view as, NewFile& copy,
                                        Progress& progress);

// "model.layers.3.mlp.domains.code.route" of domain "code" -> "model.layers.3.mlp.domains.law.route"
std::string RenameDomainOfTensor(std::string_view tensor, std::string_view domain, std::string_view as);

// Bytes of the file that CopyDomain reads.
uint64_t DomainFileBytes(const Checkpoint& source, int domain);

}  // namespace scion
