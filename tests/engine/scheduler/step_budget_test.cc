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
    const int rows = std::max(budget.Rows(decode_rows, decode_rows + waiting, 1), decode_rows + 1);
    times.push_back(machine(rows));
    budget.StepTook(rows, absl::Milliseconds(times.back()));
  }
  return times;
}

TEST(StepBudget, TakesAllUntilSomethingIsKnown) { EXPECT_EQ(StepBudget(kTarget, 500, 1).Rows(1, 1, 1), 500); }

TEST(StepBudget, FindsWhatTheMachineCanDoInTimeWithoutEverExceedingIt) {
  // Bound by memory up to some rows, then by arithmetic; experts that are not yet visited make small steps dearer.
  const Machine machines[] = {
      [](int rows) { return std::max(20.0, 0.5 * rows); },
      [](int rows) { return 2.0 * rows; },
      [](int rows) { return 10 + 45 * (1 - std::exp(-rows / 8.0)) + 0.9 * rows; },
      [](int rows) { return 0.01 * rows; },
  };
  for (const Machine& machine : machines) {
    StepBudget budget(kTarget, 512, 1);
    budget.StepTook(1, absl::Milliseconds(machine(1)));
    for (double ms : Serve(budget, machine, 0, 20)) EXPECT_LE(ms, 100);
    const int rows = budget.Rows(1, 1, 1);
    EXPECT_LE(machine(rows), 100);
    if (rows < 512) {
      EXPECT_GE(machine(rows), 70);
    }
  }
}

TEST(StepBudget, ALargeStepThatWasSlowDoesNotSayThatSmallOnesAre) {
  const Machine machine = [](int rows) { return 20 + rows; };
  StepBudget budget(kTarget, 512, 1);
  budget.StepTook(512, absl::Milliseconds(machine(512)));
  EXPECT_LT(budget.Rows(1, 1, 1), 40) << "nothing is known of small steps, so none is risked";
  for (double ms : Serve(budget, machine, 10, 10)) EXPECT_LE(ms, 100);
  EXPECT_GE(machine(budget.Rows(1, 1, 1)), 70);
}

TEST(StepBudget, AHiccupIsForgottenWithinAFewSteps) {
  const Machine machine = [](int rows) { return 20 + rows; };
  StepBudget budget(kTarget, 512, 1);
  Serve(budget, machine, 10, 20);
  const int before = budget.Rows(1, 1, 1);
  budget.StepTook(before, absl::Seconds(3));
  EXPECT_GT(budget.Rows(1, 1, 1), before / 2);
  Serve(budget, machine, 10, 10);
  EXPECT_NEAR(budget.Rows(1, 1, 1), before, 0.1 * before);
}

// 15 rows take 54 ms, 143 take 120, and neither is one of its points. Of the 66 ms more that all of 16 layers take, a
// step of 82 ms leaves time for 28, 6.8 layers, so three steps of 6. Where all is faster by a fifth, there is time
// for 38.8 of 52.8 ms, two steps of 8; where all is slower by half, for 40.5 of 99, in steps of 1.5 times the decodes.
TEST(StepBudget, KnowsWhatItMeasuresBetweenItsPointsToo) {
  StepBudget budget(kTarget, 512, 16);
  const auto learn = [&](double slowness) {
    for (int i = 0; i < 20; ++i) {
      budget.StepTook(15, absl::Milliseconds(54 * slowness));
      budget.StepTook(143, absl::Milliseconds(120 * slowness));
      budget.StepTook(180, absl::Milliseconds(130 * slowness));
    }
  };
  for (int round = 0; round < 3; ++round) {
    learn(1);
    EXPECT_EQ(budget.Layers(15, 143, 15, 16), 6);
    learn(0.8);
    EXPECT_EQ(budget.Layers(15, 143, 15, 16), 8);
    learn(1.5);
    EXPECT_EQ(budget.Layers(15, 143, 15, 16), 6);
  }
}

// Decodes have become slower by half since prompts were computed last. Steps may take 1.5 * 81 = 121.5 ms now: time for
// the 110 - 81 ms that all layers of prompts would take, had they not become slower, too.
TEST(StepBudget, WhatSlowsDecodesDownIsExpectedOfPromptsToo) {
  StepBudget budget(kTarget, 512, 16);
  for (int i = 0; i < 20; ++i) {
    budget.StepTook(15, absl::Milliseconds(54));
    budget.StepTook(143, absl::Milliseconds(110));
  }
  for (int i = 0; i < 20; ++i) budget.StepTook(15, absl::Milliseconds(81));
  EXPECT_LE(budget.Layers(15, 143, 15, 16), 8);
}

// A layer takes 3 ms with the 15 rows that decode and 8 with all 143; a step may take 82 * 1.04 = 85.3 ms, or where
// decodes take 80 ms (5 and 10 a layer), 1.5 * 80 * 1.04 = 124.8.
TEST(StepBudget, AmidAStepItSeesWhetherThereIsTimeForOneMoreLayer) {
  StepBudget budget(kTarget, 512, 16);
  const auto has_time = [&](int layers, int layered, double elapsed) {
    return budget.HasTime(
        {.rows = 143, .whole_rows = 15, .layers = layers, .layered = layered, .elapsed = absl::Milliseconds(elapsed)},
        15);
  };
  EXPECT_TRUE(has_time(4, 4, 1e6)) << "nothing is known";
  for (int i = 0; i < 20; ++i) {
    budget.StepTook(15, absl::Milliseconds(48));
    budget.StepTook(143, absl::Milliseconds(128));
  }
  // As expected: 8 ms for each that all have passed, then the next one, then 3 ms for each that is left.
  EXPECT_TRUE(has_time(6, 6, 6 * 8)) << "48 + 5 + 30 = 83";
  EXPECT_FALSE(has_time(7, 7, 7 * 8)) << "56 + 5 + 27 = 88";
  EXPECT_TRUE(has_time(14, 6, 8 * 3 + 6 * 8)) << "72 + 5 + 6 = 83, wherever the layers are";
  EXPECT_FALSE(has_time(15, 7, 8 * 3 + 7 * 8)) << "80 + 5 + 3 = 88";
  // Held up by 12 ms: (32 + 12 + 12) / (32 + 12) = 1.27 for what is left, 41 ms: 96 in all, where 44 + 41 would do.
  EXPECT_TRUE(has_time(4, 4, 32));
  EXPECT_FALSE(has_time(4, 4, 44));
  // Held up before the first of them: (50 + 12) / (24 + 12) = 1.7, taken for 1.5; 50 + 1.5 * 29 = 93.
  EXPECT_TRUE(has_time(8, 0, 24));
  EXPECT_FALSE(has_time(8, 0, 50));
  // Quicker by a sixth: (60 + 12) / (72 + 12) = 0.86 for the 26 that are left, 82 ms in all, where 60 + 26 would not
  // do.
  EXPECT_FALSE(has_time(9, 9, 72));
  EXPECT_TRUE(has_time(9, 9, 60));
  EXPECT_TRUE(
      budget.HasTime({.rows = 128, .whole_rows = 0, .layers = 8, .layered = 8, .elapsed = absl::Seconds(1)}, 15))
      << "nobody waits";
  for (int i = 0; i < 20; ++i) {
    budget.StepTook(15, absl::Milliseconds(80));
    budget.StepTook(143, absl::Milliseconds(160));
  }
  EXPECT_TRUE(has_time(7, 7, 70)) << "70 + 5 + 45 = 120";
  EXPECT_FALSE(has_time(9, 9, 90)) << "90 + 5 + 35 = 130";
}

TEST(StepBudget, AClockThatIsSetBackIsForgottenToo) {
  const Machine machine = [](int rows) { return 20 + rows; };
  for (int steps : {0, 20}) {
    StepBudget budget(kTarget, 512, 1);
    Serve(budget, machine, 10, steps);
    budget.StepTook(30, absl::Seconds(-3600));
    Serve(budget, machine, 10, 40);
    EXPECT_LE(machine(budget.Rows(1, 1, 1)), 100);
    EXPECT_GE(machine(budget.Rows(1, 1, 1)), 70);
  }
}

TEST(StepBudget, FollowsAMachineThatBecomesSlowerAndFaster) {
  double slowness = 1;
  const Machine machine = [&](int rows) { return slowness * (20 + rows); };
  StepBudget budget(kTarget, 512, 1);
  Serve(budget, machine, 10, 20);
  for (double now : {2.0, 0.5}) {
    slowness = now;
    Serve(budget, machine, 10, 20);
    EXPECT_LE(machine(budget.Rows(1, 1, 1)), 100);
    EXPECT_GE(machine(budget.Rows(1, 1, 1)), 70);
  }
}

// The target cannot be met: 40 rows that decode take 130 ms. With the prompts' share a step takes 1.5 times that,
// 195 ms.
TEST(StepBudget, WhereDecodesTakeTheWholeTargetPromptsStillGetTheirShare) {
  const Machine machine = [](int rows) { return 10 + 3 * rows; };
  StepBudget budget(kTarget, 512, 1);
  budget.StepTook(40, absl::Milliseconds(machine(40)));
  Serve(budget, machine, 40, 20);
  EXPECT_NEAR(machine(budget.Rows(40, 40, 1)), 195, 20);
  EXPECT_LE(machine(budget.Rows(5, 5, 1)), 100) << "and with fewer the target holds again";
}

// Eight decode. What they alone need says nothing of what is to come: with those that wait, it is the time of all
// together, and six tenths of it again, that a step needs lest prompts trickle in. On this machine 20 rows take 70
// ms, and 112 with the prompts' share; 40 rows 130 ms and 208, which is past twice the target of 82 (18 of the 100
// are kept in reserve); 8 rows 34 ms and, as nobody waits, 51, for which the target does.
TEST(StepBudget, WhereAllTogetherWouldFillTheTargetStepsGetLongerButNoMoreThanTwice) {
  const Machine machine = [](int rows) { return 10 + 3 * rows; };
  const auto time_with = [&](int waiting) {
    StepBudget budget(kTarget, 512, 1);
    budget.StepTook(8, absl::Milliseconds(machine(8)));
    Serve(budget, machine, 8, 20, waiting);
    return machine(budget.Rows(8, 8 + waiting, 1));
  };
  EXPECT_NEAR(time_with(0), 82, 9);
  EXPECT_NEAR(time_with(12), 112, 12);
  EXPECT_NEAR(time_with(32), 164, 15);
  EXPECT_NEAR(time_with(200), 164, 15);
}

// Of 16 layers, on a machine whose time is known: 8 that decode take 34 ms, with 92 of a prompt 310 ms, so 17.25 ms
// more for each of its layers; half as long again as the decodes' is less than the target, 82 ms (18 are kept in
// reserve). That leaves time for (82 - 34) / 17.25 = 2.78 layers a step, so 8 steps of two.
TEST(StepBudget, LayersAreSharedOutOverStepsThatEndWithinTheTarget) {
  const Machine machine = [](int rows) { return 10 + 3 * rows; };
  StepBudget budget(kTarget, 512, 16);
  EXPECT_EQ(budget.Layers(8, 100, 9, 16), 16) << "nothing is known";
  for (int rows : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512}) {
    budget.StepTook(rows, absl::Milliseconds(machine(rows)));
  }
  EXPECT_EQ(budget.Layers(8, 100, 9, 16), 2);
  EXPECT_EQ(budget.Layers(8, 100, 9, 3), 2);
  EXPECT_EQ(budget.Layers(8, 100, 9, 2), 2);
  EXPECT_EQ(budget.Layers(8, 8 + 15, 9, 16), 16) << "45 ms more";
  // 66 ms more, of which a step has time for 48: two steps, of equal length.
  EXPECT_EQ(budget.Layers(8, 8 + 22, 9, 16), 8);
  EXPECT_EQ(budget.Layers(8, 500, 9, 16), 1) << "92 ms a layer: but no prompt stands still";
  // Rows whose layers, one a step, take the 48 ms that are left: 768 ms more, 256 rows.
  EXPECT_NEAR(budget.Rows(8, 9, 1), 8 + 256, 3);
  EXPECT_NEAR(budget.Rows(8, 9, 2), 8 + 128, 3);
  EXPECT_NEAR(budget.Rows(8, 9, 16), 8 + 16, 1);
}

// 4 of 16 layers took 30 ms for 143 rows, the other 12 took 39 for 15, and 2 ms were spent beside them. So 15 rows take
// 54 ms through all layers, and 143 take 122: 17 for 4 layers more than 15 alone, and 28 of 82 are left, for 6.
TEST(StepBudget, LearnsFromLayersWhatWholeStepsTake) {
  StepBudget budget(kTarget, 512, 16);
  for (int i = 0; i < 20; ++i) {
    budget.LayeredStepTook({.rows = 143,
                            .whole_rows = 15,
                            .layers = 4,
                            .in_layers = absl::Milliseconds(30),
                            .in_others = absl::Milliseconds(39),
                            .time = absl::Milliseconds(71)});
  }
  EXPECT_EQ(budget.Layers(15, 143, 15, 6), 6);
  EXPECT_EQ(budget.Layers(15, 143, 15, 7), 4) << "two steps";
  // With none that decode, nothing is said of them.
  StepBudget alone(kTarget, 512, 16);
  for (int i = 0; i < 20; ++i) {
    alone.LayeredStepTook({.rows = 50,
                           .whole_rows = 0,
                           .layers = 8,
                           .in_layers = absl::Milliseconds(40),
                           .in_others = absl::ZeroDuration(),
                           .time = absl::Milliseconds(45)});
  }
  EXPECT_NEAR(alone.Rows(0, 0, 16), 48, 1) << "50 take 85 ms, 82 are allowed";
}

TEST(StepBudget, WithoutATargetNothingIsTooSlow) {
  StepBudget budget(absl::InfiniteDuration(), 512, 1);
  for (int i = 0; i < 10; ++i) budget.StepTook(512, absl::Seconds(100));
  EXPECT_EQ(budget.Rows(1, 1, 1), 512);
  EXPECT_EQ(budget.Layers(1, 512, 1, 1), 1);
}

}  // namespace
}  // namespace scion
