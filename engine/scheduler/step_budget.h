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
  // Of a step in which `decode_rows` rows decode, while `sequences` (those included) decode or will, once their prompts
  // are computed. As many as end within the target; but where that would leave prompts too little, a step may take
  // - three quarters longer than its decodes alone,
  // - up to twice the target: three quarters longer than all the sequences' decodes together would.
  // For a server that lets prompts trickle in order to keep a target that is too low for its load keeps everybody
  // waiting: few decode in steps that are hardly cheaper than those of many. At least 1, at most max_rows; max_rows as
  // long as nothing has been measured.
  int Rows(int decode_rows, int sequences) const;

 private:
  struct Point {
    double rows;
    double seconds;    // infinite until something has been measured
    bool is_measured;  // or else concluded from others
  };

  // What so many rows take at least, as far as measurements tell.
  double LeastSecondsOf(int rows) const;
  // Between the least and the most, at equal ratios to both. So many sequences may never have decoded together: taken
  // for as quick as the least, they never would, for their prompts were held back so that few decode.
  double LikelySecondsOf(int rows) const;

  const double target_seconds_;
  const int max_rows_;
  std::vector<Point> points_;  // ascending
};

}  // namespace scion
