#include "extract/route_balance.h"

#include <numeric>
#include <utility>

#include "engine/base/status.h"

namespace scion {

absl::StatusOr<RouteBalance> MeasureRouteBalance(const Checkpoint& checkpoint, int domain,
                                                 std::span<const uint64_t> mass) {
  const ModelSpec& spec = checkpoint.spec();
  const DomainSpec& of = spec.domains[static_cast<size_t>(domain)];
  const size_t vocab = static_cast<size_t>(spec.vocab_size);
  RouteBalance balance{.domain = of.name, .by_text = !mass.empty()};
  for (const int layer : spec.SparseLayers()) {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Find(RouteTensorName(layer, of.name)));
    SCION_ASSIGN_OR_RETURN(const std::vector<int32_t> route, checkpoint.ReadInt32(*tensor));  // [k, vocab]
    std::vector<uint64_t> visits(static_cast<size_t>(of.num_experts));
    for (size_t i = 0; i < route.size(); ++i) {
      visits[static_cast<size_t>(route[i])] += balance.by_text ? mass[i % vocab] : 1;
    }
    const double total = static_cast<double>(std::accumulate(visits.begin(), visits.end(), uint64_t{0}));
    RouteBalance::Layer& shares = balance.layers.emplace_back(RouteBalance::Layer{.layer = layer});
    for (const uint64_t v : visits) shares.shares.push_back(static_cast<double>(v) / total);
  }
  return balance;
}

std::vector<uint64_t> CountWindowTokens(const std::vector<TokenWindow>& windows, int vocab_size) {
  std::vector<uint64_t> counts(static_cast<size_t>(vocab_size));
  for (const TokenWindow& window : windows) {
    for (const int32_t id : window) ++counts[static_cast<size_t>(id)];
  }
  return counts;
}

Json ToJson(const RouteBalance& balance) {
  Json layers = Json::array();
  for (const RouteBalance::Layer& layer : balance.layers) {
    layers.push_back({{"layer", layer.layer}, {"shares", layer.shares}});
  }
  return {{"domain", balance.domain}, {"by", balance.by_text ? "text" : "token types"}, {"layers", std::move(layers)}};
}

}  // namespace scion
