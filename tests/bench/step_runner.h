// Sequences of random tokens, stepped through a model without scheduler or server: what a step costs, nothing else.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/model/model.h"

namespace scion::bench {

// Token ids come from the C library's rand() at its default seed, drawn prompt by prompt and then one per stream and
// step: the order in which llama-batched-bench draws them, so all sides see the same ids.
class StepRunner {
 public:
  struct Options {
    int streams = 1;         // sequences that decode together, at most the model's max_step_rows and max_logit_rows
    int domains = 1;         // stream i is of domain i % domains
    int context_tokens = 0;  // positions of one stream
  };

  // The model must outlive the runner. InvalidArgument for more domains than the model has; ResourceExhausted when the
  // cache can't be had.
  static absl::StatusOr<std::unique_ptr<StepRunner>> Create(Model& model, const Options& options);

  // Computes `tokens` positions of every stream from position 0, in chunks of at most max_step_rows, with the logits of
  // each prompt's last row. Returns the seconds that it took. Streams begin anew.
  double Prefill(int tokens);

  // `steps` steps in which every stream decodes one token, with its logits. Returns the seconds that they took.
  double Decode(int steps);

 private:
  StepRunner(Model& model, const Options& options, KvCache cache);

  int32_t RandomToken();
  void Run(const std::vector<StepChunk>& chunks, const std::vector<int32_t>& logit_rows);

  Model& model_;
  const Options options_;
  KvCache cache_;
  std::vector<std::vector<int32_t>> blocks_;  // [streams]
  int position_ = 0;                          // of the next token, the same in every stream
  std::vector<int32_t> token_ids_;            // of the step
  std::vector<float> logits_;                 // [streams, vocab_size]
};

}  // namespace scion::bench
