// How a grouped matmul is shared out over threads: by the bytes and rows of its parts, so that a group that most rows
// visit keeps no thread waiting for another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"

namespace scion {

// Rows that are multiplied with the same panels: an expert's, or all rows with a matrix.
struct PanelGroup {
  int rows = 0;
  int num_panels = 0;
};

// Panels [panel_begin, panel_end) of one group.
struct PanelTask {
  int group = 0;
  int panel_begin = 0;
  int panel_end = 0;
};

class PanelSplitter {
 public:
  // Threads that take the tasks one by one, in order; at least 1.
  explicit PanelSplitter(int threads) : busy_until_(static_cast<size_t>(threads)) {}

  // Split never allocates for up to so many tasks; there are never more than panels.
  void Reserve(size_t tasks) { tasks_.reserve(tasks); }

  // The panels of groups [0, num_groups), in order. A panel costs as much as its group has rows, and at least eight,
  // below which it takes as long as its weights take from memory. By these costs no thread is busy for longer than the
  // mean of all and one panel. Each thread's first piece is most of what it gets, for to begin a stream of weights
  // costs as much as to read many kilobytes of it; ever smaller ones follow, which even out what the costs don't tell.
  // Valid until the next call.
  std::span<const PanelTask> Split(int num_groups, absl::FunctionRef<PanelGroup(int group)> groups);

 private:
  std::vector<int64_t> busy_until_;  // each thread, in costs; a heap, the earliest in front
  std::vector<PanelTask> tasks_;
};

}  // namespace scion
