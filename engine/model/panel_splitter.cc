#include "engine/model/panel_splitter.h"

#include <algorithm>
#include <functional>

namespace scion {
namespace {

constexpr int kMemoryBoundRows = 8;

int64_t PanelCost(int rows) { return std::max(rows, kMemoryBoundRows); }

}  // namespace

std::span<const PanelTask> PanelSplitter::Split(int num_groups, absl::FunctionRef<PanelGroup(int group)> groups) {
  int64_t all = 0;
  for (int g = 0; g < num_groups; ++g) {
    const PanelGroup group = groups(g);
    all += PanelCost(group.rows) * group.num_panels;
  }
  const int64_t fair_end = all / static_cast<int64_t>(busy_until_.size());
  std::ranges::fill(busy_until_, 0);
  tasks_.clear();
  for (int g = 0; g < num_groups; ++g) {
    const PanelGroup group = groups(g);
    const int64_t cost = PanelCost(group.rows);
    for (int begin = 0; begin < group.num_panels;) {
      // Whoever is free first takes most of what is left of its share.
      std::ranges::pop_heap(busy_until_, std::greater<>());
      int64_t& busy_until = busy_until_.back();
      const int64_t piece = (fair_end - busy_until) * 15 / 16;
      const int64_t panels = std::max<int64_t>(1, (piece + cost / 2) / cost);
      const int end = static_cast<int>(std::min<int64_t>(group.num_panels, begin + panels));
      tasks_.push_back({.group = g, .panel_begin = begin, .panel_end = end});
      busy_until += cost * (end - begin);
      std::ranges::push_heap(busy_until_, std::greater<>());
      begin = end;
    }
  }
  return tasks_;
}

}  // namespace scion
