// How many rows a step may have so that it ends in time, learnt from the steps that were.
//
// Keeps the time of steps of about 1, 2, 3, 4, 6, 8, 12 ... rows. More rows never take less time, and never more than
// in proportion; by that each measurement corrects the entries beside its own too, so that a single slow step is
// forgotten as soon as smaller ones have been quick.
//
// Any answer is as correct as any other: a request's bits do not depend on how its prompt is cut. Owned by the engine
// thread. Never allocates after construction.
#pragma once

#include <vector>

#include "absl/time/time.h"

namespace scion {

class StepBudget {
 public:
  // target: above zero; may be infinite.
  StepBudget(absl::Duration target, int max_rows);

  void StepTook(int rows, absl::Duration time);
  // Of a step in which `decode_rows` rows decode. Where these alone take so much of the target that prompts would
  // hardly go on, prompts still get a third of the step's time. At least 1, at most max_rows; max_rows as long as
  // nothing has been measured.
  int Rows(int decode_rows) const;

 private:
  struct Point {
    double rows;
    double seconds;    // infinite until something has been measured
    bool is_measured;  // or else concluded from others
  };

  // What so many rows take at least, as far as measurements tell.
  double LeastSecondsOf(int rows) const;

  const double target_seconds_;
  const int max_rows_;
  std::vector<Point> points_;  // ascending
};

}  // namespace scion
