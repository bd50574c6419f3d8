#include "engine/scheduler/step_budget.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace scion {
namespace {

// A step's time varies from one to the next, and a token is on its way for a while after its step.
constexpr double kShareOfTarget = 0.82;
// So many times as long as decodes alone may take a step at least. Where a prompt's layers take as long as the decodes
// of a step, that is two steps for each prompt; 16 sequences with answers of 64 tokens bring one every four.
constexpr double kLeastTimeOverDecodes = 1.5;
// At most, where the prompts of a good part of all sequences wait.
constexpr double kMostTimeOverDecodes = 1.6;
constexpr double kFewWaiting = 0.07;  // of all sequences
// So many targets at most, on account of sequences that do not decode yet.
constexpr double kMostTargets = 2;
constexpr double kNewest = 0.3;  // weight of the newest measurement
// A measurement counts as at most so many times what was expected: one hiccup is no rule.
constexpr double kMostSurprise = 1.5;
// A step that has begun slowly is taken to go on so, as if so many layers more had taken what was expected of them.
constexpr double kLayersOfTrust = 4;
// What a step is expected to take amid it swings by more than what steps are expected to take on average.
constexpr double kLate = 1.04;
// Of a step during which the clock was set back.
constexpr double kShortest = 1e-6;

}  // namespace

StepBudget::StepBudget(absl::Duration target, int max_rows, int num_layers)
    : target_seconds_(absl::ToDoubleSeconds(target) * kShareOfTarget), max_rows_(max_rows), num_layers_(num_layers) {
  const auto add = [this](double rows) {
    points_.push_back({.rows = rows, .seconds = std::numeric_limits<double>::infinity(), .is_measured = false});
  };
  for (int rows = 1; rows < max_rows; rows *= 2) {
    add(rows);
    if (rows > 1 && rows + rows / 2 < max_rows) add(rows + rows / 2);
  }
  add(max_rows);
}

void StepBudget::StepTook(int rows, absl::Duration time) {
  const double log_rows = std::log(rows);
  Point& nearest = *std::min_element(points_.begin(), points_.end(), [log_rows](const Point& a, const Point& b) {
    return std::abs(std::log(a.rows) - log_rows) < std::abs(std::log(b.rows) - log_rows);
  });
  const double seconds = std::max(absl::ToDoubleSeconds(time), kShortest);
  if (nearest.is_measured) {
    const double surprise = std::min(seconds / SecondsOf(rows), kMostSurprise);
    const double change = 1 + kNewest * (surprise - 1);
    // What slows steps of some rows down, memory above all, does so to others as well, if not as much.
    for (Point& p : points_) p.seconds *= &p == &nearest ? change : std::sqrt(change);
  } else {
    nearest.seconds = seconds * nearest.rows / rows;
    nearest.is_measured = true;
  }
  for (Point& p : points_) {
    const double in_proportion = nearest.seconds * p.rows / nearest.rows;
    const double corrected =
        std::clamp(p.seconds, std::min(nearest.seconds, in_proportion), std::max(nearest.seconds, in_proportion));
    if (corrected != p.seconds) p = {.rows = p.rows, .seconds = corrected, .is_measured = false};
  }
}

void StepBudget::LayeredStepTook(const LayeredStep& step) {
  const int others = num_layers_ - step.layers;
  const absl::Duration rest = step.time - step.in_layers - step.in_others;
  StepTook(step.rows, rest + step.in_layers * num_layers_ / step.layers);
  if (step.whole_rows > 0 && others > 0) StepTook(step.whole_rows, rest + step.in_others * num_layers_ / others);
}

double StepBudget::LeastSecondsOf(int rows) const {
  double least = 0;
  for (const Point& p : points_) {
    if (p.is_measured) least = std::max(least, p.rows <= rows ? p.seconds : p.seconds * rows / p.rows);
  }
  return least;
}

double StepBudget::LikelySecondsOf(int rows) const {
  const double least = LeastSecondsOf(rows);
  const auto above = std::find_if(points_.begin(), points_.end(), [rows](const Point& p) { return p.rows >= rows; });
  const double most = above == points_.end() ? points_.back().seconds : above->seconds * rows / above->rows;
  return std::sqrt(least * std::max(least, most));
}

double StepBudget::MostSeconds(int decode_rows, int sequences) const {
  const double waiting = 1 - static_cast<double>(decode_rows) / std::max({decode_rows, sequences, 1});
  const double over_decodes =
      std::clamp(kLeastTimeOverDecodes + waiting - kFewWaiting, kLeastTimeOverDecodes, kMostTimeOverDecodes);
  return std::max({target_seconds_, over_decodes * LeastSecondsOf(decode_rows),
                   std::min(kMostTargets * target_seconds_, over_decodes * LikelySecondsOf(sequences))});
}

double StepBudget::SecondsOf(int rows) const {
  const auto above = std::find_if(points_.begin(), points_.end(), [rows](const Point& p) { return p.rows >= rows; });
  if (above == points_.end()) return points_.back().seconds;
  if (above == points_.begin()) return above->seconds;
  const Point& below = *std::prev(above);
  return below.seconds + (rows - below.rows) / (above->rows - below.rows) * (above->seconds - below.seconds);
}

int StepBudget::Layers(int decode_rows, int rows, int sequences, int left) const {
  if (std::isinf(points_.front().seconds) || rows <= decode_rows) return left;
  const double decodes = SecondsOf(decode_rows);
  const double of_a_layer = (SecondsOf(rows) - decodes) / num_layers_;
  const double spare = MostSeconds(decode_rows, sequences) - decodes;
  if (spare >= left * of_a_layer) return left;
  const int most = spare > of_a_layer ? static_cast<int>(spare / of_a_layer) : 1;
  const int steps = (left + most - 1) / most;
  return (left + steps - 1) / steps;
}

bool StepBudget::HasTime(const StepSoFar& step, int sequences) const {
  if (std::isinf(points_.front().seconds) || step.whole_rows == 0) return true;
  const double of_whole = SecondsOf(step.whole_rows) / num_layers_;
  const double of_others = SecondsOf(step.rows) / num_layers_ - of_whole;
  const double expected = step.layers * of_whole + step.layered * of_others;
  const double elapsed = absl::ToDoubleSeconds(step.elapsed);
  const double trusted = kLayersOfTrust * of_whole;
  const double slowness = std::clamp((elapsed + trusted) / (expected + trusted), 1 / kMostSurprise, kMostSurprise);
  const double rest = (num_layers_ - step.layers) * of_whole + of_others;
  return elapsed + slowness * rest <= kLate * MostSeconds(step.whole_rows, sequences);
}

int StepBudget::Rows(int decode_rows, int sequences, int layers) const {
  if (std::isinf(points_.front().seconds)) return max_rows_;
  double seconds = MostSeconds(decode_rows, sequences);
  // If all passed all layers at once: as much longer as there are steps to share it.
  if (layers < num_layers_) {
    seconds += (static_cast<double>(num_layers_) / layers - 1) * std::max(0.0, seconds - SecondsOf(decode_rows));
  }
  const auto above =
      std::find_if(points_.begin(), points_.end(), [seconds](const Point& p) { return p.seconds > seconds; });
  if (above == points_.end()) return max_rows_;
  if (above == points_.begin()) return 1;
  const Point& below = *std::prev(above);
  const double share = (seconds - below.seconds) / (above->seconds - below.seconds);
  return static_cast<int>(below.rows + share * (above->rows - below.rows));
}

}  // namespace scion
