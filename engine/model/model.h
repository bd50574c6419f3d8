// A loaded model: packed weights and the forward pass of one step of a batch. Knows nothing of requests or scheduling.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_spec.h"
#include "engine/model/pack_cache_options.h"
#include "engine/model/weight_mode.h"

namespace scion {

struct ModelOptions {
  kernels::Tier tier = kernels::Tier::kPortable;
  // Instead of the tier's own table, if set: how a tier is tried out on a machine that lacks its instructions.
  const kernels::KernelTable* kernels = nullptr;
  WeightMode weights = WeightMode::kAsIs;
  kernels::KvType kv_type = kernels::KvType::kBF16;
  // Bounds the scratch memory: rows of one Forward, and rows of one Logits call.
  int max_step_rows = 512;
  int max_logit_rows = 32;
  PackCacheOptions pack_cache = {};
};

// fp32 with weights in fp32, fp16 where they are kept in that type, else bf16.
kernels::KvType DefaultKvType(const Checkpoint& checkpoint, WeightMode weights);

// Consecutive tokens of one sequence that enter a step.
struct StepChunk {
  int domain = 0;     // index into spec().domains
  int row_begin = 0;  // first row in StepBatch::token_ids
  int num_rows = 0;
  int position = 0;                 // of the first row; positions 0..position-1 are in the cache already
  std::span<const int32_t> blocks;  // the sequence's block table, long enough for position + num_rows tokens
  int held_row = 0;                 // of a layered chunk past layer 0: its first row among those that the model holds
};

// Layers that chunks pass in a step: all of them, or some, and the others in later steps.
struct LayerRange {
  int begin = 0;
  int end = 0;
};

inline bool AlwaysGoesOn(int /*layer*/) { return true; }

struct StepBatch {
  std::span<const int32_t> token_ids;   // [rows], each in [0, vocab_size)
  std::span<const StepChunk> chunks;    // in row order, covering all rows
  std::span<const int32_t> logit_rows;  // rows whose next-token logits are wanted, ascending, none twice
  // The last so many rows, of whole chunks, may pass `layers` only (layered prefill, arXiv:2510.08055). Where these end
  // before the model does, it holds the rows' hidden state until the next step, whose `layers` begin there; then they
  // may be fewer chunks, and in any order. They have no logits before the last layer.
  int num_layered_rows = 0;
  LayerRange layers = {};
  // Asked before each of these layers but the first: where the answer is no, `layers` end there, and what `logit_rows`
  // says of layered chunks doesn't count. Must be cheap, and outlive the call.
  absl::FunctionRef<bool(int layer)> goes_on = AlwaysGoesOn;
};

// What became of a step's layered chunks, and how long it spent in the layers that they passed, and in the others, but
// for the last, where a row of a prompt costs little.
struct LayersPassed {
  int end = 0;  // of the batch's `layers`
  absl::Duration layered_time;
  absl::Duration others_time;
};

class Model {
 public:
  // Packs the weights (tensor by tensor; the checkpoint is not needed afterwards), or takes them from the cache. `pool`
  // must outlive the model and is used by every call. DataLoss as Checkpoint::Read; ResourceExhausted when memory can't
  // be had.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const Checkpoint& checkpoint, const ModelOptions& options,
                                                     ThreadPool& pool);
  virtual ~Model() = default;

  virtual const ModelSpec& spec() const = 0;
  virtual const ModelOptions& options() const = 0;
  // What the model stores per token; KvCache::Create takes them with kernels::kKvBlockTokens.
  virtual std::vector<KvPlaneSpec> KvPlanes() const = 0;
  // Bytes of packed weights: all in all, and of one domain.
  virtual uint64_t weight_bytes() const = 0;
  virtual uint64_t domain_weight_bytes(int domain) const = 0;
  // Of all, those that are mapped from files of the cache.
  virtual uint64_t shared_weight_bytes() const = 0;
  // Bytes of packed weights that one token of the domain reads; the mean over experts where they differ.
  virtual uint64_t active_weight_bytes(int domain) const = 0;

  // Runs the layers for the batch's rows and keeps the final hidden state of logit_rows; of the other rows, the last
  // layer computes keys and values only. At most max_step_rows rows.
  // Never allocates. Only one thread at a time.
  virtual LayersPassed Forward(const StepBatch& batch, KvCache& cache) = 0;
  // Logits of logit_rows[first .. first + count) of the last Forward: out [count, vocab_size]. count <= max_logit_rows.
  virtual void Logits(int first, int count, float* out) = 0;

  // Tokens that expert e of the domain has computed in the layer since load: in the last layer, of those whose logits
  // were wanted. Any thread.
  virtual uint64_t ExpertTokens(int layer, int domain, int expert) const = 0;
};

// Runs one prompt alone from position 0 and hands over the logits of every position in order. For tools and tests.
// InvalidArgument if the prompt is empty or longer than the context; ResourceExhausted if the cache is too small.
absl::Status RunPrompt(Model& model, KvCache& cache, int domain, std::span<const int32_t> token_ids,
                       absl::FunctionRef<void(int position, std::span<const float> logits)> consume);

}  // namespace scion
