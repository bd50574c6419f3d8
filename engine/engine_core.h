// The engine thread: takes requests in, runs step after step, hands events out. The only owner of scheduler, KV cache
// and sampler. The loop does not allocate: requests bring their memory along.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/engine.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/kv_cache/prefix_cache.h"
#include "engine/model/model.h"
#include "engine/model/sampler.h"
#include "engine/request_state.h"
#include "engine/scheduler/scheduler.h"
#include "engine/scheduler/step_budget.h"

namespace scion {

class EngineCore {
 public:
  using StatePtr = std::shared_ptr<RequestState>;

  // model, pool and cache must outlive the core. options: filled in and checked.
  EngineCore(const EngineOptions& options, Model& model, ThreadPool& pool, KvCache& cache);
  // Ends all requests with Unavailable.
  ~EngineCore();

  // Claims room in the queue for a request, before memory is spent on it. ResourceExhausted names the limit.
  absl::Status ClaimQueue(int prompt_tokens, uint64_t bytes);
  // Hands over a request whose room was claimed. Unavailable when the core is stopping.
  absl::Status Add(StatePtr state);
  // Any thread but the engine's.
  void Notify(const StatePtr& state);

  bool idle() const { return live_requests_.load() == 0; }
  // Fills in all but the weights' sizes and the experts' loads, which are the model's.
  EngineStats Stats() const;

 private:
  struct DomainCounters {
    std::atomic<uint64_t> requests{0};
    std::atomic<uint64_t> prompt_tokens{0};
    std::atomic<uint64_t> generated_tokens{0};
  };
  // A row of the step whose logits are wanted: to score the prompt's next token, or to choose a new one.
  struct LogitRow {
    RequestState* state;
    int position;
    bool scores_prompt;
    // Out:
    int32_t token_id;
    float logprob;
  };

  void Loop();
  // False when the core has stopped and nothing is left to do.
  bool TakeNewRequests();
  void EndUnwanted();
  // Of the live requests, those that generate, as far as they may run at once.
  int NumToDecode() const;
  void RunStep(const ScheduledStep& step, int sequences);
  void PublishCounters();
  void ComposeStep(const ScheduledStep& step);
  // Of the step, whose layered chunks have passed the layers before `layer_end`.
  void CountPassed(const ScheduledStep& step, int layer_end);
  // Scores or samples row `i` of the tile that begins at logit row `first`. Runs on a compute thread.
  void Evaluate(int first, int i, int thread);
  void Deliver(LogitRow& row, std::span<const Logprob> top);
  // The caller hears of new events with the next PostNotifications(): one wake-up of the notifier a step, not a token.
  void NotifyLater(RequestState& state);
  void PostNotifications();
  void Finish(RequestState& state, FinishReason reason, absl::Status status);
  void ReleaseQueue(int prompt_tokens, uint64_t bytes);
  void ReleaseQueue(const RequestState& state) { ReleaseQueue(state.num_prompt_tokens, state.bytes()); }

  const EngineOptions& options_;
  Model& model_;
  ThreadPool& pool_;
  KvCache& cache_;
  const kernels::KernelTable& kernels_;
  std::optional<PrefixCache> prefixes_;
  Scheduler scheduler_;
  const int num_layers_;
  // In which rows of prompts cost time: in the last, all but those whose logits are wanted leave keys and values only.
  const int num_full_layers_;
  StepBudget budget_;
  Notifier notifier_;

  // ---- shared with callers ----
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<StatePtr> inbox_;  // guarded by mutex_
  bool stopping_ = false;        // guarded by mutex_
  std::atomic<int> live_requests_{0};
  std::atomic<int> waiting_requests_{0};
  std::atomic<int64_t> waiting_tokens_{0};
  std::atomic<uint64_t> waiting_bytes_{0};
  std::atomic<int> running_requests_{0};
  std::atomic<int> max_running_seen_{0};
  std::atomic<uint64_t> steps_{0}, preemptions_{0}, finished_{0}, cancelled_{0};
  std::atomic<uint64_t> prefix_hit_tokens_{0}, prefix_miss_tokens_{0}, prefix_evictions_{0};
  std::vector<DomainCounters> domain_counters_;

  // ---- the engine thread's own ----
  std::vector<StatePtr> taken_;
  std::vector<StatePtr> live_;
  bool ending_all_ = false;
  std::vector<int32_t> step_tokens_;
  std::vector<StepChunk> step_chunks_;
  std::vector<int32_t> logit_row_indices_;
  std::vector<LogitRow> logit_rows_;
  std::vector<StatePtr> to_notify_;
  std::vector<RequestState*> scored_only_;  // requests of this step that end once their prompt is computed
  std::vector<float> logits_;               // [tile, vocab_size]
  std::vector<Logprob> top_;                // [tile, kMaxTopLogprobs]
  std::vector<Sampler> samplers_;           // one per compute thread

  std::thread thread_;
};

}  // namespace scion
