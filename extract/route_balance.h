// How evenly the route tables share the tokens of a domain among its experts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/checkpoint.h"
#include "extract/fold_text.h"

namespace scion {

struct RouteBalance {
  struct Layer {
    int layer = 0;
    std::vector<double> shares = {};  // [experts of the domain], of all visits; their sum is 1
  };
  std::string domain;
  bool by_text = false;            // tokens count as often as the text has them, else each token of the vocabulary once
  std::vector<Layer> layers = {};  // the sparse ones, in order
};

// domain: index into the spec's, of a model that routes by tables. mass: [vocab_size], how often each token comes, or
// empty. A token that visits k experts makes k visits, whatever their weights. Reads one table at a time. DataLoss as
// Checkpoint::Read.
absl::StatusOr<RouteBalance> MeasureRouteBalance(const Checkpoint& checkpoint, int domain,
                                                 std::span<const uint64_t> mass);

// [vocab_size]: how often each token enters the model when the windows are run.
std::vector<uint64_t> CountWindowTokens(const std::vector<TokenWindow>& windows, int vocab_size);

// {"domain", "by": "text" or "token types", "layers": [{"layer", "shares"}]}
Json ToJson(const RouteBalance& balance);

}  // namespace scion
