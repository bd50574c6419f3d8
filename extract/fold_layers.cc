#include "extract/fold_layers.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "extract/fit_ffn.h"
#include "extract/merge_experts.h"

namespace scion {
namespace {

constexpr int kBatchTokens = 4096;
constexpr int64_t kMaxFitBytes = int64_t{2} << 30;
constexpr int64_t kMaxTokens = int64_t{1} << 20;
constexpr double kRidge = 1e-4;
// Neurons that are means of all experts' lie far from the best, and go there in long steps; those kept apart are near.
constexpr double kRateOfMeans = 6e-2, kRate = 1e-2;
constexpr int kSolveRows = 1 << 17;  // many times the unknowns
constexpr int kFitRows = 1024;       // of a step
constexpr float kEvenMetric = 0.2f;  // part of an error's cost that all directions share
// What channels take from the gate of a neuron for a token that visits none of its experts: of one that stands for one
// expert, which one channel silences, for good; of others; and at the beginning of a fit.
constexpr float kSilence = -2048.0f;
constexpr float kNearSilence = -4.0f;
constexpr float kDamping = -0.5f;
// What a channel that is set brings to the FFN's input: more where steps are short, so that they find the route soon.
constexpr float kChannelValueOfMeans = 1.0f, kChannelValue = 8.0f;
// Of the tokens that the head's metric is made from: 128 MiB.
constexpr int64_t kMetricLogits = int64_t{1} << 25;
// Without fitting, sizes are taken from so many tokens of the text, or drawn evenly.
constexpr int kDrawnTokens = 2048;

std::vector<TokenBatch> MakeBatches(std::span<const TokenWindow> windows) {
  std::vector<TokenBatch> batches;
  for (const TokenWindow& window : windows) {
    if (batches.empty() || batches.back().ids.size() + window.size() > kBatchTokens) batches.emplace_back();
    TokenBatch& batch = batches.back();
    batch.ids.insert(batch.ids.end(), window.begin(), window.end());
    batch.window_end.push_back(static_cast<int>(batch.ids.size()));
  }
  return batches;
}

double Sum(std::span<const float> values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// The experts' parts of all visits, by tokens' counts.
std::vector<double> Shares(const LayerRoute& route, int num_experts, std::span<const double> token_mass) {
  constexpr double kLeast = 1e-9;  // an expert that no token visits
  std::vector<double> share(static_cast<size_t>(num_experts), kLeast);
  for (size_t slot = 0; slot < route.experts.size(); ++slot) {
    const double weight = std::max(0.0, static_cast<double>(route.weights[slot]));
    for (size_t id = 0; id < token_mass.size(); ++id) {
      share[static_cast<size_t>(route.experts[slot][id])] += weight * token_mass[id];
    }
  }
  const double sum = std::accumulate(share.begin(), share.end(), 0.0);
  for (double& part : share) part /= sum;
  return share;
}

// Windows of tokens drawn evenly, always the same.
std::vector<TokenWindow> DrawWindows(const ModelSpec& spec) {
  const int length = std::min(spec.max_position_embeddings, 256);
  std::vector<TokenWindow> windows(static_cast<size_t>((kDrawnTokens + length - 1) / length));
  uint64_t state = 1;
  for (TokenWindow& window : windows) {
    for (int i = 0; i < length; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      window.push_back(static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(spec.vocab_size)));
    }
  }
  return windows;
}

// Rows of the problem at even distances, no more than kSolveRows.
FitProblem Thinned(const FitProblem& problem) {
  const int step = (problem.num_rows + kSolveRows - 1) / kSolveRows;
  return {(problem.num_rows + step - 1) / step, [&problem, step](std::span<const int> rows, FitRows& out) {
            std::vector<int> chosen(rows.begin(), rows.end());
            for (int& row : chosen) row *= step;
            return problem.read(chosen, out);
          }};
}

void AppendColumns(FloatMatrix& m, int count) {
  FloatMatrix wider(m.rows, m.cols + count);
  for (int i = 0; i < m.rows; ++i) std::ranges::copy(m.row(i), wider.row(i).begin());
  m = std::move(wider);
}

class Folder {
 public:
  Folder(const Checkpoint& checkpoint, const DenseLayout& layout, const FoldOptions& options, MatrixOps& ops)
      : checkpoint_(checkpoint),
        spec_(checkpoint.spec()),
        domain_(spec_.domains[static_cast<size_t>(options.domain)]),
        layout_(layout),
        options_(options),
        ops_(ops),
        forward_(checkpoint, options.domain, ops) {}

  absl::StatusOr<std::map<int, FoldedLayer>> Run() {
    batches_ = MakeBatches(Windows());
    for (const TokenBatch& batch : batches_) {
      SCION_ASSIGN_OR_RETURN(FloatMatrix x, forward_.Embed(batch));
      first_row_.push_back(first_row_.empty() ? 0 : first_row_.back() + teacher_.back().rows);
      teacher_.push_back(std::move(x));
    }
    if (options_.fit) SCION_RETURN_IF_ERROR(MakeMetric());
    std::map<int, FoldedLayer> folded;
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
      SCION_RETURN_IF_ERROR(forward_.AddAttention(layer, batches_, teacher_));
      if (!student_.empty()) SCION_RETURN_IF_ERROR(forward_.AddAttention(layer, batches_, student_));
      if (spec_.layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kTable) {
        SCION_ASSIGN_OR_RETURN(FoldedLayer result, FoldLayer(layer));
        folded[layer] = std::move(result);
        continue;
      }
      SCION_RETURN_IF_ERROR(forward_.AddFfn(layer, batches_, teacher_));
      if (!student_.empty()) SCION_RETURN_IF_ERROR(forward_.AddFfn(layer, batches_, student_));
    }
    return folded;
  }

 private:
  // What flows through the layers: the text, or as much of one as tells the size of what enters them.
  std::vector<TokenWindow> Windows() const {
    if (options_.fit) return options_.windows;
    std::vector<TokenWindow> windows = options_.windows.empty() ? DrawWindows(spec_) : options_.windows;
    int64_t tokens = 0;
    const auto enough = std::ranges::find_if(windows, [&](const TokenWindow& window) {
      return (tokens += static_cast<int64_t>(window.size())) >= kDrawnTokens;
    });
    if (enough != windows.end()) windows.erase(enough + 1, windows.end());
    return windows;
  }

  // What an error of the residual stream costs: by what the head makes of it, and some for what only later layers see.
  absl::Status MakeMetric() {
    TokenBatch batch;
    for (const TokenWindow& window : options_.windows) {
      batch.ids.insert(batch.ids.end(), window.begin(), window.end());
      batch.window_end.push_back(static_cast<int>(batch.ids.size()));
      if (static_cast<int64_t>(batch.ids.size()) * spec_.vocab_size >= kMetricLogits) break;
    }
    SCION_ASSIGN_OR_RETURN(FloatMatrix x, forward_.Embed(batch));
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
      SCION_RETURN_IF_ERROR(forward_.AddAttention(layer, {&batch, 1}, {&x, 1}));
      SCION_RETURN_IF_ERROR(forward_.AddFfn(layer, {&batch, 1}, {&x, 1}));
    }
    SCION_ASSIGN_OR_RETURN(metric_, forward_.HeadMetric(x));
    for (int k = 0; k < metric_.rows; ++k) {
      for (float& v : metric_.row(k)) v *= 1 - kEvenMetric;
      metric_.row(k)[static_cast<size_t>(k)] += kEvenMetric;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<FoldedLayer> FoldLayer(int layer) {
    FoldedLayer folded;
    folded.num_experts = domain_.num_experts;
    SCION_ASSIGN_OR_RETURN(folded.route, forward_.ReadRoute(layer));
    SCION_ASSIGN_OR_RETURN(const float size, InputSize(layer));
    folded.channel_size = (options_.width == 1 ? kChannelValueOfMeans : kChannelValue) * size;
    SCION_ASSIGN_OR_RETURN(folded.ffn, Merged(layer, folded.route));
    SCION_ASSIGN_OR_RETURN(const DType type, ExpertType(layer));
    if (IsFitted() && student_.empty()) student_ = teacher_;
    SCION_RETURN_IF_ERROR(forward_.AddFfn(layer, batches_, teacher_));
    if (IsFitted()) SCION_RETURN_IF_ERROR(Fit(layer, folded));
    for (FloatMatrix* m : {&folded.ffn.gate, &folded.ffn.up, &folded.ffn.down}) RoundTo(type, *m);
    if (IsFitted()) SCION_RETURN_IF_ERROR(AddFolded(layer, folded));
    return folded;
  }

  absl::StatusOr<DType> ExpertType(int layer) const {
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                           checkpoint_.Find(ExpertTensorName(layer, domain_.name, 0, "gate")));
    return tensor->dtype;
  }

  // The mean root mean square of what enters the layer's FFN.
  absl::StatusOr<float> InputSize(int layer) {
    double sum = 0, count = 0;
    for (const FloatMatrix& x : student_.empty() ? teacher_ : student_) {
      FloatMatrix unused;
      std::vector<float> sizes;
      SCION_RETURN_IF_ERROR(forward_.FfnInput(layer, x, unused, &sizes));
      sum += Sum(sizes);
      count += static_cast<double>(sizes.size());
    }
    return static_cast<float>(sum / count);
  }

  std::vector<double> TokenMass() const {
    std::vector<double> mass(static_cast<size_t>(spec_.vocab_size), options_.windows.empty() ? 1.0 : 0.0);
    for (const TokenWindow& window : options_.windows) {
      for (const int32_t id : window) mass[static_cast<size_t>(id)] += 1.0;
    }
    return mass;
  }

  absl::StatusOr<FfnMatrices> Merged(int layer, const LayerRoute& route) {
    std::vector<FfnMatrices> experts;
    for (int e = 0; e < domain_.num_experts; ++e) {
      SCION_ASSIGN_OR_RETURN(FfnMatrices expert, ReadExpert(checkpoint_, layer, domain_.name, e));
      experts.push_back(std::move(expert));
    }
    SCION_RETURN_IF_ERROR(AlignNeurons(experts, ops_));
    const size_t count = experts.size();
    const std::vector<double> share = options_.weighted ? Shares(route, domain_.num_experts, TokenMass())
                                                        : std::vector<double>(count, 1.0 / static_cast<double>(count));
    const bool has_channels = layout_.has_channels(layer);
    MergedFfn merged = MergeExperts(experts, share, options_.width, has_channels);
    // A token's experts are summed by the route's weights.
    const double weight_sum = Sum(route.weights);
    const double per_visit = weight_sum / static_cast<double>(route.weights.size());
    for (size_t j = 0; j < merged.experts.size(); ++j) {
      const bool is_shared = merged.experts[j].size() == count;
      const double factor = is_shared || !has_channels ? weight_sum : per_visit;
      if (factor == 1.0) continue;
      for (int k = 0; k < merged.ffn.down.rows; ++k) {
        float& v = merged.ffn.down.row(k)[j];
        v = static_cast<float>(factor * static_cast<double>(v));
      }
    }
    if (!has_channels) return std::move(merged.ffn);
    const int hidden = spec_.hidden_size;
    AppendColumns(merged.ffn.gate, domain_.num_experts);
    AppendColumns(merged.ffn.up, domain_.num_experts);
    for (size_t j = 0; j < merged.experts.size(); ++j) {
      if (merged.experts[j].size() == count) continue;
      Silence(merged.experts[j], merged.ffn.gate.row(static_cast<int>(j)).subspan(static_cast<size_t>(hidden)));
    }
    return std::move(merged.ffn);
  }

  // channels: gate weights of a neuron that stands for some experts. Channels of experts that a token doesn't visit are
  // set: the weights sum to zero for a token that visits one of the neuron's, to `silence` for one of another's.
  void Silence(std::span<const int> experts, std::span<float> channels) const {
    const float silence = IsFitted() ? kDamping : experts.size() == 1 ? kSilence : kNearSilence;
    const float all = static_cast<float>(channels.size()), own = static_cast<float>(experts.size());
    std::ranges::fill(channels, -silence * (own - 1) / (all - 1));
    for (const int e : experts) channels[static_cast<size_t>(e)] = silence * (all - own) / (all - 1);
  }

  // With as many neurons as the experts have, and one of them visited, nothing is left to fit.
  bool IsFitted() const {
    const int slots = spec_.layers[static_cast<size_t>(spec_.SparseLayers()[0])].ffn.num_experts_per_tok;
    return options_.fit && domain_.num_experts > 1 &&
           (options_.width < domain_.num_experts || !layout_.is_wider(spec_) || slots > 1);
  }

  // in [rows, hidden_size + channels]
  absl::StatusOr<FloatMatrix> Inputs(int layer, const TokenBatch& batch, const FloatMatrix& x,
                                     const FoldedLayer& folded) {
    FloatMatrix in;
    std::vector<float> sizes;
    SCION_RETURN_IF_ERROR(forward_.FfnInput(layer, x, in, &sizes));
    if (!layout_.has_channels(layer)) return in;
    AppendColumns(in, folded.num_experts);
    for (int i = 0; i < in.rows; ++i) {
      const std::span<float> channels = in.row(i).subspan(static_cast<size_t>(spec_.hidden_size));
      std::ranges::fill(channels, folded.channel_size / sizes[static_cast<size_t>(i)]);
      for (const auto& slot : folded.route.experts) {
        channels[static_cast<size_t>(slot[static_cast<size_t>(batch.ids[static_cast<size_t>(i)])])] = 0;
      }
    }
    return in;
  }

  // Of every row: 1 / the mean square of what the teacher gives, divided by the mean of that.
  std::vector<float> RowWeights() const {
    std::vector<float> weights;
    for (const FloatMatrix& to : teacher_) {
      for (int i = 0; i < to.rows; ++i) {
        double square = 0;
        for (const float v : to.row(i)) square += static_cast<double>(v) * static_cast<double>(v);
        weights.push_back(static_cast<float>(1.0 / std::max(square / to.cols, 1e-12)));
      }
    }
    const double mean = Sum(weights) / static_cast<double>(weights.size());
    for (float& w : weights) w = static_cast<float>(static_cast<double>(w) / mean);
    return weights;
  }

  // Row numbers run through all batches.
  absl::Status ReadRows(int layer, const FoldedLayer& folded, std::span<const float> weights, std::span<const int> rows,
                        FitRows& out) {
    const int count = static_cast<int>(rows.size());
    TokenBatch tokens{std::vector<int32_t>(rows.size()), {count}};
    FloatMatrix x(count, spec_.hidden_size);
    out.targets.Resize(count, spec_.hidden_size);
    out.weights.resize(rows.size());
    ops_.ForEach(count, [&](int i) {
      const int row = rows[static_cast<size_t>(i)];
      const size_t b = static_cast<size_t>(std::ranges::upper_bound(first_row_, row) - first_row_.begin()) - 1;
      const int at = row - first_row_[b];
      tokens.ids[static_cast<size_t>(i)] = batches_[b].ids[static_cast<size_t>(at)];
      const std::span<const float> to = teacher_[b].row(at), from = student_[b].row(at);
      std::ranges::copy(from, x.row(i).begin());
      std::ranges::transform(to, from, out.targets.row(i).begin(), std::minus());
      out.weights[static_cast<size_t>(i)] = weights[static_cast<size_t>(row)];
    });
    SCION_ASSIGN_OR_RETURN(out.inputs, Inputs(layer, tokens, x, folded));
    return absl::OkStatus();
  }

  absl::Status Fit(int layer, FoldedLayer& folded) {
    const std::vector<float> weights = RowWeights();
    const FitProblem problem{static_cast<int>(weights.size()), [&](std::span<const int> rows, FitRows& out) {
                               return ReadRows(layer, folded, weights, rows, out);
                             }};
    const FitProblem some = Thinned(problem);
    SCION_RETURN_IF_ERROR(SolveDown(some, kRidge, folded.ffn, ops_));
    RefineOptions refine;
    refine.batch_rows = kFitRows;
    refine.steps = int64_t{options_.epochs} * problem.num_rows / refine.batch_rows;
    refine.seed = static_cast<uint64_t>(layer) + 1;
    refine.metric = &metric_;
    refine.learning_rate = options_.width == 1 ? kRateOfMeans : kRate;
    Progress progress(options_.log, absl::StrCat("fitting layer ", layer),
                      static_cast<uint64_t>(refine.steps * refine.batch_rows), Progress::Unit::kTokens);
    SCION_RETURN_IF_ERROR(RefineFfn(problem, refine, folded.ffn, ops_, progress));
    return SolveDown(some, kRidge, folded.ffn, ops_);
  }

  absl::Status AddFolded(int layer, const FoldedLayer& folded) {
    FloatMatrix out;
    for (size_t b = 0; b < batches_.size(); ++b) {
      SCION_ASSIGN_OR_RETURN(const FloatMatrix in, Inputs(layer, batches_[b], student_[b], folded));
      SCION_RETURN_IF_ERROR(ApplyFfn(folded.ffn, in, ops_, out));
      for (size_t i = 0; i < out.data.size(); ++i) student_[b].data[i] += out.data[i];
    }
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const DomainSpec& domain_;
  const DenseLayout& layout_;
  const FoldOptions& options_;
  MatrixOps& ops_;
  LayerwiseForward forward_;
  std::vector<TokenBatch> batches_;
  std::vector<int> first_row_;  // of each batch
  FloatMatrix metric_;
  std::vector<FloatMatrix> teacher_, student_;  // residual streams of each batch; student_ empty while it is teacher_
};

}  // namespace

absl::StatusOr<std::map<int, FoldedLayer>> FoldLayers(const Checkpoint& checkpoint, const DenseLayout& layout,
                                                      const FoldOptions& options, MatrixOps& ops) {
  return Folder(checkpoint, layout, options, ops).Run();
}

int64_t MaxCalibrationTokens(const ModelSpec& spec) {
  constexpr int64_t kStreams = 2;  // teacher, student
  return std::min(kMaxTokens, kMaxFitBytes / (kStreams * 4 * spec.hidden_size));
}

}  // namespace scion
