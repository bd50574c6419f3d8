// How many rows a step may have so that it ends in time, learnt from the steps that were.
//
// Keeps the time of steps of about 1, 2, 3, 4, 6, 8, 12 ... rows. More rows never take less time, and never more than
// in proportion; by that each measurement corrects the entries beside its own too, so that a single slow step is
// forgotten as soon as smaller ones have been quick.
//
// Any answer is as correct as any other: a request's bits do not depend on how its prompt is cut, by tokens or by
// layers. Owned by the engine thread. Never allocates after construction.
#pragma once

#include <vector>

#include "absl/time/time.h"

namespace scion {

// A step in which some rows passed all layers, and the others some.
struct LayeredStep {
  int rows = 0;
  int whole_rows = 0;        // of these, that passed all layers; may be none
  int layers = 0;            // that all rows passed; at least 1
  absl::Duration in_layers;  // spent in these
  absl::Duration in_others;
  absl::Duration time;  // of the step
};

// Amid such a step.
struct StepSoFar {
  int rows = 0;
  int whole_rows = 0;      // which decode
  int layers = 0;          // that whole rows have passed
  int layered = 0;         // that all rows have passed
  absl::Duration elapsed;  // since it began
};

class StepBudget {
 public:
  // target: above zero; may be infinite. num_layers: those among which the time of a prompt's rows is equally shared
  // out.
  StepBudget(absl::Duration target, int max_rows, int num_layers);

  // All of whose rows passed all layers.
  void StepTook(int rows, absl::Duration time);
  // Says what a step would take in which all rows pass all layers, and one of the whole rows alone.
  void LayeredStepTook(const LayeredStep& step);
  // How many rows a step may have, `decode_rows` rows that decode among them, while `sequences` (those included) decode
  // or will, once their prompts are computed. As many as end within the target if the rows of prompts pass so many
  // layers a step; but where that would leave prompts too little, a step may take
  // - half as long again as its decodes alone, six tenths where the prompts of some sequences wait,
  // - up to twice the target: half as long again as all the sequences' decodes together would.
  // For a server that lets prompts trickle in order to keep a target that is too low for its load keeps everybody
  // waiting: few decode in steps that are hardly cheaper than those of many. At least 1, at most max_rows; max_rows as
  // long as nothing has been measured.
  int Rows(int decode_rows, int sequences, int layers) const;
  // How many of the `left` layers that are left to them prompts may pass in a step of `rows` rows, by the same rule: at
  // least 1, and no more than steps of equal length need.
  int Layers(int decode_rows, int rows, int sequences, int left) const;
  // Amid a layered step: whether all its rows may pass the next layer, too, so that it ends in time by the same rule,
  // if it goes on as slowly as it has begun.
  bool HasTime(const StepSoFar& step, int sequences) const;

 private:
  struct Point {
    double rows;
    double seconds;    // infinite until something has been measured
    bool is_measured;  // or else concluded from others
  };

  // Above target_seconds_ only by the exceptions of Rows.
  double MostSeconds(int decode_rows, int sequences) const;
  // What so many rows take at most, as far as is known.
  double SecondsOf(int rows) const;
  // What so many rows take at least, as far as measurements tell.
  double LeastSecondsOf(int rows) const;
  // Between the least and the most, at equal ratios to both. So many sequences may never have decoded together: taken
  // for as quick as the least, they never would, for their prompts were held back so that few decode.
  double LikelySecondsOf(int rows) const;

  const double target_seconds_;
  const int max_rows_;
  const int num_layers_;
  std::vector<Point> points_;  // ascending
};

}  // namespace scion
