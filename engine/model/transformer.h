// The forward pass of a decoder-only transformer, written against LayerSpec: pre-norm, rotary positions, grouped-query
// attention with or without norms of q and k, SwiGLU, dense or routed by tables or by a gate. All scratch memory is
// made once.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/panel_splitter.h"
#include "engine/model/weights.h"
#include "engine/route/route_plan.h"

namespace scion {

class Transformer final : public Model {
 public:
  // Makes the scratch memory for options.max_step_rows.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(ModelSpec spec, const ModelOptions& options,
                                                             Weights weights, ThreadPool& pool);

  const ModelSpec& spec() const override { return spec_; }
  const ModelOptions& options() const override { return options_; }
  std::vector<KvPlaneSpec> KvPlanes() const override;
  uint64_t weight_bytes() const override { return weights_.bytes(); }
  uint64_t domain_weight_bytes(int domain) const override {
    return weights_.domains[static_cast<size_t>(domain)].size();
  }
  uint64_t shared_weight_bytes() const override { return weights_.shared_bytes(); }
  uint64_t active_weight_bytes(int domain) const override;
  LayersPassed Forward(const StepBatch& batch, KvCache& cache) override;
  void Logits(int first, int count, float* out) override;
  uint64_t ExpertTokens(int layer, int domain, int expert) const override;

 private:
  // Rows of one task in the element-wise loops, and of one task in attention: a decode step of a few rows is one task
  // and wakes nobody, a prefill makes enough tasks to even out.
  static constexpr int kRowsPerTask = 8;
  static constexpr int kKvHeadsPerTask = 4;
  static constexpr int kMaxMatrices = 3;  // of one MatMul: q, k and v
  static constexpr int kMaxRowRanges = 16;

  // Rows [begin, end) of a matmul's input, panels of the matrix, and where row 0 of this matrix' output lies.
  struct MatrixRows {
    const kernels::PackedMatrix* matrix;
    int begin;
    int end;
    int first_panel;
    int num_panels;
    float* y;
  };
  // Rows [begin, end) of an FFN's sorted input that share the weights.
  struct FfnGroup {
    const FfnWeights* weights;
    int begin;
    int end;
  };

  // Tells the matrices that the caches won't keep their weights until the next step, if that is so.
  void ReadPastCaches();
  Transformer(ModelSpec spec, const ModelOptions& options, Weights weights, ThreadPool& pool);

  // Tells of each row what is known of it before the first layer.
  void DescribeRows(const StepBatch& batch);
  // Each of these leaves x normed and prepared for the matrices that come next: a row is at hand only once.
  // x = Embed[ids] of rows [0, rows)
  void Embed(const StepBatch& batch, int rows);
  // x of the layered chunks, of which `first_row` is the first row, as they were held, for the layer that comes next.
  void Resume(const StepBatch& batch, int first_row, int layer);
  void Hold(int first_row, int rows);
  // x += Attn(Norm x) of so many rows. Returns how many go on: in the last layer, whose keys and values are wanted of
  // all rows and nothing else but of those with logits, only those.
  // Rows from `first_new_row` on have passed no layer in this step.
  int Attention(const StepBatch& batch, KvCache& cache, int layer, int rows, int first_new_row);
  // Leaves the given rows in what is known of a row, in what the last layer's queries are made of, and in its plan.
  void KeepRows(std::span<const int32_t> kept);
  // The tokens from `row` on, before `end`, that follow each other in one sequence.
  int RunOfTokens(int row, int end) const;
  // x += FFN(Norm x), dense or routed.
  void Ffn(int rows, int layer);
  // The layer's part of the plan by the gate's scores of norm_rows_, which are then prepared for the experts.
  void RouteByGate(int rows, int layer);

  // Norm x of a row, until the thread's next one.
  const float* Norm(int row, const std::vector<float>& weight, int thread);
  // activations_ = Norm x as q, k and v take it.
  void PrepareAttention(int row, int layer, int thread);
  // norm_rows_ = Norm x where a gate comes first; otherwise PrepareExperts(Norm x).
  void PrepareFfn(int row, int layer, int thread);
  // activations_ = norm as the FFN takes it, at the places of the row's experts.
  void PrepareExperts(int row, int layer, const float* norm);

  // One LayerRouter per sparse layer.
  std::vector<LayerRouter> Routers() const;
  kernels::ActivationForm FormOf(const kernels::PackedMatrix& w) const { return k_.activation_form(w.type); }
  size_t RowBytes(const kernels::PackedMatrix& w) const { return k_.activation_row_bytes(FormOf(w), w.in_features); }
  // Prepares one row for `w` and the matrices that share its input.
  void Prepare(const kernels::PackedMatrix& w, const float* x, std::byte* out) const {
    k_.prepare_activations(FormOf(w), x, 0, nullptr, 1, w.in_features, out);
  }
  // y = a W^T for matrices of one input, their outputs side by side: panels shared out over the threads. Only the
  // panels that have some of y's columns [first, last) in them.
  void MatMul(std::span<const kernels::PackedMatrix> matrices, const std::byte* activations, int rows, float* y,
              size_t y_stride, size_t first, size_t last);
  // All columns.
  void MatMul(const kernels::PackedMatrix& matrix, const std::byte* activations, int rows, float* y) {
    const size_t width = static_cast<size_t>(matrix.out_features);
    MatMul({&matrix, 1}, activations, rows, y, width, 0, width);
  }
  // Calls fn(row, thread) for rows [0, rows).
  template <typename Fn>
  void ForRows(int rows, Fn&& fn);
  // Calls fn(begin, end, thread) for ranges of rows [0, rows).
  template <typename Fn>
  void ForRowRanges(int rows, int rows_per_task, Fn&& fn);

  const ModelSpec spec_;
  const ModelOptions options_;
  const kernels::KernelTable& k_;
  Weights weights_;
  ThreadPool& pool_;
  std::vector<int> sparse_index_;  // of each layer among the sparse layers; -1 for dense ones
  RoutePlan plan_;

  // Row-wise scratch, fp32 unless said otherwise; R = max_step_rows, V = R * the largest num_experts_per_tok.
  size_t qkv_width_ = 0;        // of the widest layer
  size_t attention_width_ = 0;  // num_heads * head_dim of the widest layer
  AlignedBuffer x_;             // [R, hidden_size] the residual stream
  AlignedBuffer held_x_;        // [R, hidden_size] of rows that have passed some layers, from one step to the next
  AlignedBuffer activations_;   // [V] rows of prepared activations
  AlignedBuffer norm_rows_;     // [R] rows of hidden_size as matmul reads fp32; gate-routed layers only
  AlignedBuffer gate_scores_;   // [R, the largest num_experts]
  AlignedBuffer norm_;          // [threads, hidden_size]
  AlignedBuffer qkv_;           // [R, qkv_width]
  AlignedBuffer attention_;     // [R, attention_width]
  AlignedBuffer ffn_hidden_;    // [V] rows prepared for the down matrix
  AlignedBuffer ffn_out_;       // [V, hidden_size]
  AlignedBuffer cos_;           // [R, half of the largest head_dim]
  AlignedBuffer sin_;
  AlignedBuffer logit_activations_;  // [R] rows of prepared activations, kept between Forward and Logits
  std::vector<int32_t> row_chunk_;   // [R] index of the row's chunk
  std::vector<int32_t> row_position_;
  std::vector<int32_t> row_token_;
  std::vector<int32_t> row_domain_;
  std::vector<int32_t> chosen_experts_;  // [V]
  std::vector<float> chosen_weights_;
  std::vector<FfnGroup> groups_;
  std::vector<MatrixRows> matmuls_;
  PanelSplitter splitter_;

  // [sparse layer][expert of all domains]
  std::vector<std::unique_ptr<std::atomic<uint64_t>[]>> expert_tokens_;
};

}  // namespace scion
