#include "engine/scheduler/step_budget.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace scion {
namespace {

// A step's time varies from one to the next, and a token is on its way for a while after its step.
constexpr double kShareOfTarget = 0.85;
// So many times as long as decodes alone may take a step at least: with 1.55, 128 tokens of prompt for 64 of
// answer come in just as fast as their answers end, and with any less, or a hiccup, the queue only grows.
constexpr double kLeastTimeOverDecodes = 1.75;
// So many targets at most, on account of sequences that do not decode yet.
constexpr double kMostTargets = 2;
constexpr double kNewest = 0.3;  // weight of the newest measurement
// A measurement counts as at most so many times what was expected: one hiccup is no rule.
constexpr double kMostSurprise = 1.5;

}  // namespace

StepBudget::StepBudget(absl::Duration target, int max_rows)
    : target_seconds_(absl::ToDoubleSeconds(target) * kShareOfTarget), max_rows_(max_rows) {
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
  const double seconds = absl::ToDoubleSeconds(time) * nearest.rows / rows;
  if (nearest.is_measured) {
    nearest.seconds += kNewest * (std::min(seconds, kMostSurprise * nearest.seconds) - nearest.seconds);
  } else {
    nearest.seconds = seconds;
    nearest.is_measured = true;
  }
  for (Point& p : points_) {
    const double in_proportion = nearest.seconds * p.rows / nearest.rows;
    const double corrected =
        std::clamp(p.seconds, std::min(nearest.seconds, in_proportion), std::max(nearest.seconds, in_proportion));
    if (corrected != p.seconds) p = {.rows = p.rows, .seconds = corrected, .is_measured = false};
  }
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

int StepBudget::Rows(int decode_rows, int sequences) const {
  if (std::isinf(points_.front().seconds)) return max_rows_;
  const double seconds =
      std::max({target_seconds_, kLeastTimeOverDecodes * LeastSecondsOf(decode_rows),
                std::min(kMostTargets * target_seconds_, kLeastTimeOverDecodes * LikelySecondsOf(sequences))});
  const auto above =
      std::find_if(points_.begin(), points_.end(), [seconds](const Point& p) { return p.seconds > seconds; });
  if (above == points_.end()) return max_rows_;
  if (above == points_.begin()) return 1;
  const Point& below = *std::prev(above);
  const double share = (seconds - below.seconds) / (above->seconds - below.seconds);
  return static_cast<int>(below.rows + share * (above->rows - below.rows));
}

}  // namespace scion
