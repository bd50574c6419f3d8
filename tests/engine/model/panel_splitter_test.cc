#include "engine/model/panel_splitter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace scion {
namespace {

// As the header says: as many as there are rows, at least eight.
double Cost(const PanelGroup& group) { return std::max(group.rows, 8); }

std::vector<PanelTask> Split(const std::vector<PanelGroup>& groups, int threads) {
  PanelSplitter splitter(threads);
  const std::span<const PanelTask> tasks =
      splitter.Split(static_cast<int>(groups.size()), [&](int g) { return groups[static_cast<size_t>(g)]; });
  return {tasks.begin(), tasks.end()};
}

double Total(const std::vector<PanelGroup>& groups) {
  return std::accumulate(groups.begin(), groups.end(), 0.0,
                         [](double sum, const PanelGroup& g) { return sum + Cost(g) * g.num_panels; });
}

// When the last thread ends, if each takes the next task as soon as it has none.
double EndOf(const std::vector<PanelGroup>& groups, const std::vector<PanelTask>& tasks, int threads) {
  std::vector<double> busy_until(static_cast<size_t>(threads));
  for (const PanelTask& task : tasks) {
    double& first = *std::min_element(busy_until.begin(), busy_until.end());
    first += Cost(groups[static_cast<size_t>(task.group)]) * (task.panel_end - task.panel_begin);
  }
  return *std::max_element(busy_until.begin(), busy_until.end());
}

void ExpectEveryPanelOnceInOrder(const std::vector<PanelGroup>& groups, const std::vector<PanelTask>& tasks) {
  size_t task = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int panel = 0; panel < groups[g].num_panels;) {
      ASSERT_LT(task, tasks.size());
      ASSERT_EQ(tasks[task].group, static_cast<int>(g));
      ASSERT_EQ(tasks[task].panel_begin, panel);
      ASSERT_GT(tasks[task].panel_end, panel);
      panel = tasks[task++].panel_end;
      ASSERT_LE(panel, groups[g].num_panels);
    }
  }
  EXPECT_EQ(task, tasks.size());
}

TEST(PanelSplitterTest, AnExpertThatMostRowsVisitLeavesNoThreadIdle) {
  // Of 16 experts, first, amid the others, last.
  for (size_t hot : {size_t{0}, size_t{7}, size_t{15}}) {
    std::vector<PanelGroup> experts(16, {.rows = 1, .num_panels = 44});
    experts[hot].rows = 500;
    for (int threads : {1, 2, 3, 8, 16}) {
      const std::vector<PanelTask> tasks = Split(experts, threads);
      ExpectEveryPanelOnceInOrder(experts, tasks);
      // All threads take equal shares but for one panel, the least that a thread can take.
      EXPECT_LE(EndOf(experts, tasks, threads), Total(experts) / threads + 500) << threads << " threads, hot " << hot;
    }
  }
}

TEST(PanelSplitterTest, ThreadsEndTogetherWhateverTheGroups) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::vector<PanelGroup> groups(1 + random() % 64);
    double largest = 0;
    for (PanelGroup& g : groups) {
      // Many with few rows, some with many.
      g = {.rows = static_cast<int>(random() % (random() % 4 == 0 ? 200 : 12)) + 1,
           .num_panels = static_cast<int>(random() % 50) + 1};
      largest = std::max(largest, Cost(g));
    }
    const int threads = static_cast<int>(random() % 16) + 1;
    const std::vector<PanelTask> tasks = Split(groups, threads);
    ExpectEveryPanelOnceInOrder(groups, tasks);
    EXPECT_LE(EndOf(groups, tasks, threads), Total(groups) / threads + largest) << threads << " threads";
  }
}

TEST(PanelSplitterTest, OneMatrixIsSharedOutInFewLargePieces) {
  // 500 panels of one row: all but a sixteenth in one piece for each thread, where a sixteenth of that follows.
  for (int threads : {1, 2, 4}) {
    const std::vector<PanelGroup> matrix = {{.rows = 1, .num_panels = 500}};
    const std::vector<PanelTask> tasks = Split(matrix, threads);
    ExpectEveryPanelOnceInOrder(matrix, tasks);
    EXPECT_LE(tasks.size(), static_cast<size_t>(4 * threads)) << threads << " threads";
    for (int t = 0; t < threads; ++t) {
      EXPECT_NEAR(tasks[static_cast<size_t>(t)].panel_end - tasks[static_cast<size_t>(t)].panel_begin,
                  500.0 * 15 / 16 / threads, 1);
    }
  }
}

TEST(PanelSplitterTest, FewRowsCostWhatTheirWeightsDo) {
  // By rows alone, a panel of eight rows would weigh as much as eight of one: one thread would have almost all panels.
  const std::vector<PanelGroup> experts = {{.rows = 8, .num_panels = 32}, {.rows = 1, .num_panels = 32}};
  const std::vector<PanelTask> tasks = Split(experts, 2);
  ASSERT_FALSE(tasks.empty());
  EXPECT_GE(tasks[0].panel_end, 28);
}

TEST(PanelSplitterTest, NothingToDoIsNoTask) {
  EXPECT_TRUE(Split({}, 2).empty());
  EXPECT_TRUE(Split({{.rows = 3, .num_panels = 0}}, 2).empty());
}

}  // namespace
}  // namespace scion
