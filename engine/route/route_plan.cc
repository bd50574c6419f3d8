#include "engine/route/route_plan.h"

#include <algorithm>
#include <utility>

namespace scion {

TableRouter::TableRouter(int vocab_size, int num_experts_per_tok, std::vector<int> domain_num_experts)
    : vocab_size_(vocab_size), num_experts_per_tok_(num_experts_per_tok), domains_(domain_num_experts.size()) {
  expert_offsets_.push_back(0);
  for (int n : domain_num_experts) expert_offsets_.push_back(expert_offsets_.back() + n);
}

void TableRouter::SetDomain(int domain, std::vector<int32_t> table, std::vector<float> weights) {
  domains_[static_cast<size_t>(domain)] = {std::move(table), std::move(weights)};
}

RoutePlan::RoutePlan(std::vector<LayerRouter> routers, int max_rows) {
  size_t max_visits = 0;
  size_t max_experts = 0;
  for (const LayerRouter& router : routers) {
    const size_t visits = static_cast<size_t>(max_rows) * static_cast<size_t>(router.num_experts_per_tok);
    const size_t experts = static_cast<size_t>(router.num_experts);
    Layer layer{.router = router, .experts = {}, .rows = {}, .entries = {}, .weights = {}, .route = {}};
    layer.experts.resize(std::min(visits, experts));
    layer.rows.resize(visits);
    layer.entries.resize(visits);
    layer.weights.resize(visits);
    layers_.push_back(std::move(layer));
    max_visits = std::max(max_visits, visits);
    max_experts = std::max(max_experts, experts);
  }
  expert_of_visit_.resize(max_visits);
  next_entry_.resize(max_experts);
}

void RoutePlan::BuildTable(int sparse_layer, std::span<const int32_t> token_ids, std::span<const int32_t> domains) {
  Layer& layer = layers_[static_cast<size_t>(sparse_layer)];
  const TableRouter& table = *layer.router.table;
  size_t visit = 0;
  for (size_t row = 0; row < token_ids.size(); ++row) {
    for (int slot = 0; slot < layer.router.num_experts_per_tok; ++slot, ++visit) {
      expert_of_visit_[visit] = table.Expert(domains[row], slot, token_ids[row]);
      layer.weights[visit] = table.weight(domains[row], slot);
    }
  }
  SortVisits(layer, visit);
}

void RoutePlan::BuildGated(int sparse_layer, int rows, std::span<const int32_t> experts,
                           std::span<const float> weights) {
  Layer& layer = layers_[static_cast<size_t>(sparse_layer)];
  const size_t visits = static_cast<size_t>(rows) * static_cast<size_t>(layer.router.num_experts_per_tok);
  std::copy_n(experts.begin(), visits, expert_of_visit_.begin());
  std::copy_n(weights.begin(), visits, layer.weights.begin());
  SortVisits(layer, visits);
}

// A counting sort; stable, so rows ascend within an expert.
void RoutePlan::SortVisits(Layer& layer, size_t visits) {
  std::fill_n(next_entry_.begin(), layer.router.num_experts, 0);
  for (size_t visit = 0; visit < visits; ++visit) ++next_entry_[static_cast<size_t>(expert_of_visit_[visit])];
  size_t num_groups = 0;
  int begin = 0;
  for (int expert = 0; expert < layer.router.num_experts; ++expert) {
    const int count = std::exchange(next_entry_[static_cast<size_t>(expert)], begin);
    if (count == 0) continue;
    layer.experts[num_groups++] = {expert, begin, begin + count};
    begin += count;
  }
  const size_t k = static_cast<size_t>(layer.router.num_experts_per_tok);
  for (size_t visit = 0; visit < visits; ++visit) {
    const int32_t entry = next_entry_[static_cast<size_t>(expert_of_visit_[visit])]++;
    layer.entries[visit] = entry;
    layer.rows[static_cast<size_t>(entry)] = static_cast<int32_t>(visit / k);
  }
  layer.route = {.experts = {layer.experts.data(), num_groups},
                 .rows = {layer.rows.data(), visits},
                 .entries = {layer.entries.data(), visits},
                 .weights = {layer.weights.data(), visits}};
}

}  // namespace scion
