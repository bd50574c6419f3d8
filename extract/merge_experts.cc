#include "extract/merge_experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <tuple>

#include "engine/base/status.h"
#include "extract/assignment.h"

namespace scion {
namespace {

double MeanSquare(const FloatMatrix& m) {
  double sum = 0;
  for (const float v : m.data) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::max(sum / static_cast<double>(m.data.size()), 1e-30);
}

// What makes the three parts comparable: 1 / mean square of each.
struct PartScales {
  double gate, up, down;
};

PartScales ScalesOf(const FfnMatrices& ffn) {
  return {1 / MeanSquare(ffn.gate), 1 / MeanSquare(ffn.up), 1 / MeanSquare(ffn.down)};
}

// Neurons as rows: gate, up, down, scaled. [intermediate_size, 3 * hidden_size]
FloatMatrix NeuronRows(const FfnMatrices& ffn, const PartScales& scales) {
  const int hidden = ffn.gate.cols;
  FloatMatrix rows(ffn.gate.rows, 3 * hidden);
  const float gate = static_cast<float>(std::sqrt(scales.gate)), up = static_cast<float>(std::sqrt(scales.up)),
              down = static_cast<float>(std::sqrt(scales.down));
  for (int i = 0; i < rows.rows; ++i) {
    const std::span<float> row = rows.row(i);
    for (size_t k = 0; k < static_cast<size_t>(hidden); ++k) {
      row[k] = gate * ffn.gate.row(i)[k];
      row[static_cast<size_t>(hidden) + k] = up * ffn.up.row(i)[k];
      row[2 * static_cast<size_t>(hidden) + k] = down * ffn.down.row(static_cast<int>(k))[static_cast<size_t>(i)];
    }
  }
  return rows;
}

FfnMatrices Permuted(const FfnMatrices& ffn, std::span<const int> order) {
  FfnMatrices out{FloatMatrix(ffn.gate.rows, ffn.gate.cols), FloatMatrix(ffn.up.rows, ffn.up.cols),
                  FloatMatrix(ffn.down.rows, ffn.down.cols)};
  for (size_t i = 0; i < order.size(); ++i) {
    std::ranges::copy(ffn.gate.row(order[i]), out.gate.row(static_cast<int>(i)).begin());
    std::ranges::copy(ffn.up.row(order[i]), out.up.row(static_cast<int>(i)).begin());
  }
  for (int k = 0; k < out.down.rows; ++k) {
    for (size_t i = 0; i < order.size(); ++i) out.down.row(k)[i] = ffn.down.row(k)[static_cast<size_t>(order[i])];
  }
  return out;
}

// One neuron-to-be: the experts whose neurons of the place it stands for, their part of the tokens, and their mean.
struct Cluster {
  std::vector<int> experts;
  double share = 0;
  std::vector<double> gate, up, down;
};

Cluster ClusterOf(const FfnMatrices& ffn, int place, int expert, double share) {
  Cluster cluster{{expert}, share, {}, {}, {}};
  cluster.gate.assign(ffn.gate.row(place).begin(), ffn.gate.row(place).end());
  cluster.up.assign(ffn.up.row(place).begin(), ffn.up.row(place).end());
  for (int k = 0; k < ffn.down.rows; ++k)
    cluster.down.push_back(static_cast<double>(ffn.down.row(k)[static_cast<size_t>(place)]));
  return cluster;
}

double SquaredDistance(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t k = 0; k < a.size(); ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
  return sum;
}

// How much the weighted sum of squares within clusters grows.
double MergeCost(const Cluster& a, const Cluster& b, const PartScales& scales) {
  const double distance = scales.gate * SquaredDistance(a.gate, b.gate) + scales.up * SquaredDistance(a.up, b.up) +
                          scales.down * SquaredDistance(a.down, b.down);
  return a.share * b.share / (a.share + b.share) * distance;
}

Cluster Merge(const Cluster& a, const Cluster& b) {
  Cluster merged{a.experts, a.share + b.share, a.gate, a.up, a.down};
  merged.experts.insert(merged.experts.end(), b.experts.begin(), b.experts.end());
  std::ranges::sort(merged.experts);
  const double part = b.share / merged.share;
  const auto mix = [&](std::vector<double>& to, std::span<const double> other) {
    for (size_t k = 0; k < to.size(); ++k) to[k] += part * (other[k] - to[k]);
  };
  mix(merged.gate, b.gate);
  mix(merged.up, b.up);
  mix(merged.down, b.down);
  return merged;
}

// Of a place's clusters, the pair that is merged next.
struct Candidate {
  double cost;
  size_t first, second;
};

Candidate CheapestPair(std::span<const Cluster> clusters, const PartScales& scales) {
  Candidate best{std::numeric_limits<double>::infinity(), 0, 0};
  for (size_t a = 0; a < clusters.size(); ++a) {
    for (size_t b = a + 1; b < clusters.size(); ++b) {
      const double cost = MergeCost(clusters[a], clusters[b], scales);
      if (cost < best.cost) best = {cost, a, b};
    }
  }
  return best;
}

}  // namespace

absl::Status AlignNeurons(std::span<FfnMatrices> experts, MatrixOps& ops) {
  if (experts.size() < 2) return absl::OkStatus();
  const PartScales scales = ScalesOf(experts[0]);
  const FloatMatrix reference = NeuronRows(experts[0], scales);
  for (FfnMatrices& expert : experts.subspan(1)) {
    const FloatMatrix rows = NeuronRows(expert, scales);
    FloatMatrix cost;  // |a - b|^2 less |a|^2, which is the same for all of a row
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(reference, rows, cost));
    std::vector<float> square(static_cast<size_t>(rows.rows));
    for (int i = 0; i < rows.rows; ++i) {
      for (const float v : rows.row(i)) square[static_cast<size_t>(i)] += v * v;
    }
    for (int i = 0; i < cost.rows; ++i) {
      for (size_t j = 0; j < square.size(); ++j) cost.row(i)[j] = square[j] - 2 * cost.row(i)[j];
    }
    expert = Permuted(expert, SolveAssignment(cost));
  }
  return absl::OkStatus();
}

MergedFfn MergeExperts(std::span<const FfnMatrices> experts, std::span<const double> share, int width, bool is_gated) {
  const int places = experts[0].gate.rows, hidden = experts[0].gate.cols;
  const PartScales scales = ScalesOf(experts[0]);
  std::vector<std::vector<Cluster>> clusters(static_cast<size_t>(places));
  using Entry = std::tuple<double, int>;  // cost, place
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  for (int place = 0; place < places; ++place) {
    auto& mine = clusters[static_cast<size_t>(place)];
    for (size_t e = 0; e < experts.size(); ++e)
      mine.push_back(ClusterOf(experts[e], place, static_cast<int>(e), share[e]));
    if (mine.size() > 1) queue.emplace(CheapestPair(mine, scales).cost, place);
  }
  int64_t count = int64_t{places} * static_cast<int64_t>(experts.size());
  for (; count > int64_t{places} * width; --count) {
    const int place = std::get<1>(queue.top());
    queue.pop();
    auto& mine = clusters[static_cast<size_t>(place)];
    const Candidate pair = CheapestPair(mine, scales);
    mine[pair.first] = Merge(mine[pair.first], mine[pair.second]);
    mine.erase(mine.begin() + static_cast<ptrdiff_t>(pair.second));
    if (mine.size() > 1) queue.emplace(CheapestPair(mine, scales).cost, place);
  }

  MergedFfn merged;
  const int neurons = places * width;
  merged.ffn = {FloatMatrix(neurons, hidden), FloatMatrix(neurons, hidden), FloatMatrix(hidden, neurons)};
  int next = 0;
  for (const auto& place : clusters) {
    for (const Cluster& cluster : place) {
      const auto narrow = [](double v) { return static_cast<float>(v); };
      std::ranges::transform(cluster.gate, merged.ffn.gate.row(next).begin(), narrow);
      std::ranges::transform(cluster.up, merged.ffn.up.row(next).begin(), narrow);
      for (int k = 0; k < hidden; ++k) {
        const double scale = is_gated || cluster.experts.size() == experts.size() ? 1.0 : cluster.share;
        merged.ffn.down.row(k)[static_cast<size_t>(next)] = narrow(scale * cluster.down[static_cast<size_t>(k)]);
      }
      merged.experts.push_back(cluster.experts);
      ++next;
    }
  }
  return merged;
}

}  // namespace scion
