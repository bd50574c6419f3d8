// Which model and which domain a request means.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_spec.h"

namespace scion {

// A domain that the request asks for, and where it says so ("domain", "x-scion-domain").
struct DomainWish {
  std::string source;
  std::string domain;
};

// `requested_model` is "name", "name@domain", or empty for whatever is served. Wishes with an empty domain are none.
// The index of the domain in spec.domains. NotFound: another model, or a domain that is not there (lists those that
// are). InvalidArgument: two places name different domains.
absl::StatusOr<int> ChooseDomain(const ModelSpec& spec, std::string_view served_model, std::string_view requested_model,
                                 std::vector<DomainWish> wishes);

}  // namespace scion
