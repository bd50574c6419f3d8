// Machines that are only formulas: how fast the budget finds what they can do in time, and that it never asks for much
// more.
#include "engine/scheduler/step_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

namespace scion {
namespace {

using Machine = std::function<double(int rows)>;  // milliseconds

constexpr absl::Duration kTarget = absl::Milliseconds(100);

// As a server would: so many decode rows in every step, prompts without end; `waiting` more sequences will decode.
// Returns the times of the steps.
std::vector<double> Serve(StepBudget& budget, const Machine& machine, int decode_rows, int steps, int waiting = 0) {
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    const int rows = std::max(budget.Rows(decode_rows, decode_rows + waiting), decode_rows + 1);
    times.push_back(machine(rows));
    budget.StepTook(rows, absl::Milliseconds(times.back()));
  }
  return times;
}

TEST(StepBudget, TakesAllUntilSomethingIsKnown) { EXPECT_EQ(StepBudget(kTarget, 500).Rows(1, 1), 500); }

TEST(StepBudget, FindsWhatTheMachineCanDoInTimeWithoutEverExceedingIt) {
  // Bound by memory up to some rows, then by arithmetic; experts that are not yet visited make small steps dearer.
  const Machine machines[] = {
      [](int rows) { return std::max(20.0, 0.5 * rows); },
      [](int rows) { return 2.0 * rows; },
      [](int rows) { return 10 + 45 * (1 - std::exp(-rows / 8.0)) + 0.9 * rows; },
      [](int rows) { return 0.01 * rows; },
  };
  for (const Machine& machine : machines) {
    StepBudget budget(kTarget, 512);
    budget.StepTook(1, absl::Milliseconds(machine(1)));
    for (double ms : Serve(budget, machine, 0, 20)) EXPECT_LE(ms, 100);
    const int rows = budget.Rows(1, 1);
    EXPECT_LE(machine(rows), 100);
    if (rows < 512) {
      EXPECT_GE(machine(rows), 70);
    }
  }
}

TEST(StepBudget, ALargeStepThatWasSlowDoesNotSayThatSmallOnesAre) {
  const Machine machine = [](int rows) { return 20 + rows; };
  StepBudget budget(kTarget, 512);
  budget.StepTook(512, absl::Milliseconds(machine(512)));
  EXPECT_LT(budget.Rows(1, 1), 40) << "nothing is known of small steps, so none is risked";
  for (double ms : Serve(budget, machine, 10, 10)) EXPECT_LE(ms, 100);
  EXPECT_GE(machine(budget.Rows(1, 1)), 70);
}

TEST(StepBudget, AHiccupIsForgottenWithinAFewSteps) {
  const Machine machine = [](int rows) { return 20 + rows; };
  StepBudget budget(kTarget, 512);
  Serve(budget, machine, 10, 20);
  const int before = budget.Rows(1, 1);
  budget.StepTook(before, absl::Seconds(3));
  EXPECT_GT(budget.Rows(1, 1), before / 2);
  Serve(budget, machine, 10, 10);
  EXPECT_NEAR(budget.Rows(1, 1), before, 0.1 * before);
}

TEST(StepBudget, FollowsAMachineThatBecomesSlowerAndFaster) {
  double slowness = 1;
  const Machine machine = [&](int rows) { return slowness * (20 + rows); };
  StepBudget budget(kTarget, 512);
  Serve(budget, machine, 10, 20);
  for (double now : {2.0, 0.5}) {
    slowness = now;
    Serve(budget, machine, 10, 20);
    EXPECT_LE(machine(budget.Rows(1, 1)), 100);
    EXPECT_GE(machine(budget.Rows(1, 1)), 70);
  }
}

// The target cannot be met: 40 rows that decode take 130 ms. With the prompts' share a step takes 1.55 times that,
// 201.5 ms.
TEST(StepBudget, WhereDecodesTakeTheWholeTargetPromptsStillGetTheirShare) {
  const Machine machine = [](int rows) { return 10 + 3 * rows; };
  StepBudget budget(kTarget, 512);
  budget.StepTook(40, absl::Milliseconds(machine(40)));
  Serve(budget, machine, 40, 20);
  EXPECT_NEAR(machine(budget.Rows(40, 40)), 227.5, 20);
  EXPECT_LE(machine(budget.Rows(5, 5)), 100) << "and with fewer the target holds again";
}

// Eight decode. What they alone need says nothing of what is to come: with those that wait, it is the time of all
// together, and three quarters of it again, that a step needs lest prompts trickle in. On this machine 20 rows take 70
// ms, and 122.5 with the prompts' share; 40 rows 130 ms and 227.5, which is past twice the target of 85 (15 of the 100
// are kept in reserve); 8 rows 34 ms and 59.5, for which the target does.
TEST(StepBudget, WhereAllTogetherWouldFillTheTargetStepsGetLongerButNoMoreThanTwice) {
  const Machine machine = [](int rows) { return 10 + 3 * rows; };
  const auto time_with = [&](int waiting) {
    StepBudget budget(kTarget, 512);
    budget.StepTook(8, absl::Milliseconds(machine(8)));
    Serve(budget, machine, 8, 20, waiting);
    return machine(budget.Rows(8, 8 + waiting));
  };
  EXPECT_NEAR(time_with(0), 85, 9);
  EXPECT_NEAR(time_with(12), 122.5, 12);
  EXPECT_NEAR(time_with(32), 170, 15);
  EXPECT_NEAR(time_with(200), 170, 15);
}

TEST(StepBudget, WithoutATargetNothingIsTooSlow) {
  StepBudget budget(absl::InfiniteDuration(), 512);
  for (int i = 0; i < 10; ++i) budget.StepTook(512, absl::Seconds(100));
  EXPECT_EQ(budget.Rows(1, 1), 512);
}

}  // namespace
}  // namespace scion
