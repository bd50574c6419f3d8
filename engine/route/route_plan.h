// Where every token of a step goes, in every sparse layer, known before the first layer runs.
//
// Random routed experts (PanGu-Σ, arXiv:2303.10845, section 2.2): the request's domain picks an expert group, a fixed
// table maps the token's id to the experts of that group. A route plan is that look-up done once per step for all
// sparse layers, sorted by expert, so that each expert's weights are read once for all of its tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scion {

// The tables of one sparse layer, all domains.
class TableRouter {
 public:
  // expert_offsets [domains + 1]: experts of domain d are numbered expert_offsets[d] .. expert_offsets[d+1] - 1.
  TableRouter(int vocab_size, int num_experts_per_tok, std::vector<int> domain_num_experts);

  // table [num_experts_per_tok, vocab_size], every entry in [0, experts of the domain) - checked when it was read.
  // weights [num_experts_per_tok].
  void SetDomain(int domain, std::vector<int32_t> table, std::vector<float> weights);

  int num_experts_per_tok() const { return num_experts_per_tok_; }
  int num_experts() const { return expert_offsets_.back(); }  // of all domains together
  int expert_offset(int domain) const { return expert_offsets_[static_cast<size_t>(domain)]; }
  // Number of the expert, among those of all domains, that `token_id` visits in `slot`.
  int Expert(int domain, int slot, int32_t token_id) const {
    const Domain& d = domains_[static_cast<size_t>(domain)];
    return expert_offset(domain) +
           d.table[static_cast<size_t>(slot) * static_cast<size_t>(vocab_size_) + static_cast<size_t>(token_id)];
  }
  float weight(int domain, int slot) const {
    return domains_[static_cast<size_t>(domain)].weights[static_cast<size_t>(slot)];
  }

 private:
  struct Domain {
    std::vector<int32_t> table;
    std::vector<float> weights;
  };
  int vocab_size_;
  int num_experts_per_tok_;
  std::vector<int> expert_offsets_;
  std::vector<Domain> domains_;
};

// Entries [begin, end) of a layer's expert order belong to `expert`.
struct ExpertRows {
  int expert = 0;
  int begin = 0;
  int end = 0;
};

// One sparse layer's part of the plan. With k = num_experts_per_tok, an entry is one visit of one row to one expert.
struct LayerRoute {
  std::span<const ExpertRows> experts;  // those with at least one entry, ascending
  std::span<const int32_t> rows;        // [rows * k] row of each entry, in expert order; rows ascend in an expert
  std::span<const int32_t> entries;     // [rows, k] entry of each visit: the inverse of the above
  std::span<const float> weights;       // [rows, k] weight of each visit, in slot order
};

// How one sparse layer chooses.
struct LayerRouter {
  const TableRouter* table = nullptr;  // null: a gate, whose choices come when the layer runs
  int num_experts = 0;
  int num_experts_per_tok = 1;
};

class RoutePlan {
 public:
  // routers: one per sparse layer; their tables must outlive the plan. Allocates all that a step will need.
  RoutePlan(std::vector<LayerRouter> routers, int max_rows);

  // Plans one table-routed layer. token_ids, domains: [rows]. Never allocates.
  void BuildTable(int sparse_layer, std::span<const int32_t> token_ids, std::span<const int32_t> domains);
  // Plans one gate-routed layer. experts, weights: [rows, k] of what the gate chose, in slot order. Never allocates.
  void BuildGated(int sparse_layer, int rows, std::span<const int32_t> experts, std::span<const float> weights);

  int num_layers() const { return static_cast<int>(layers_.size()); }
  // sparse_layer: index among the sparse layers.
  const LayerRoute& layer(int sparse_layer) const { return layers_[static_cast<size_t>(sparse_layer)].route; }

 private:
  struct Layer {
    LayerRouter router;
    std::vector<ExpertRows> experts;
    std::vector<int32_t> rows;
    std::vector<int32_t> entries;
    std::vector<float> weights;
    LayerRoute route;
  };
  // Sorts expert_of_visit_[0 .. visits) into the layer's route; its weights are there.
  void SortVisits(Layer& layer, size_t visits);

  std::vector<Layer> layers_;
  std::vector<int32_t> expert_of_visit_;
  std::vector<int32_t> next_entry_;
};

}  // namespace scion
