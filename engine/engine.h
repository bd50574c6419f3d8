// The facade of the engine: requests of token ids go in, a stream of events comes out.
//
// One engine thread owns scheduler, KV cache and sampler. Callers never touch it: Submit hands a request over and
// returns a handle; events are stored in memory that Submit allocated, so a reader that stalls delays nobody. Every
// accepted request ends with exactly one terminal event.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/kernels/kernels.h"
#include "engine/model/domain_generations.h"
#include "engine/model/model_spec.h"
#include "engine/model/pack_cache_options.h"
#include "engine/model/weight_mode.h"
#include "engine/text/tokenizer.h"

namespace scion {

inline constexpr int kMaxTopLogprobs = 20;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxStopTokens = 64;

// One step of a batch, for tests and tracing.
struct StepTrace {
  int rows = 0;
  int prefill_rows = 0;    // rows of prompts; the others are decode rows
  int prefill_layers = 0;  // that these pass in the step, at most
  int decode_rows = 0;
  int domains = 0;  // different domains in the step
  int sequences = 0;
};

struct EngineOptions {
  std::filesystem::path model_directory;
  int num_threads = 0;                // 0: one per core
  std::optional<kernels::Tier> tier;  // default: kernels::ChooseTier()
  WeightMode weights = WeightMode::kAsIs;
  PackCacheOptions pack_cache = {};
  // Default: fp32 with weights of fp32, fp16 where the model's weights are kept in it, else bf16.
  std::optional<kernels::KvType> kv_type;
  uint64_t kv_cache_bytes = uint64_t{512} << 20;
  int max_step_tokens = 512;       // the token budget of a step: decode rows first, prefill chunks fill the rest
  int prefill_chunk_tokens = 256;  // of one prompt in one step, as long as other prompts want a part of it
  // A step in which sequences decode takes no more prompt tokens than lets it end within this time, as far as earlier
  // steps tell. Where the load is too high for that, it takes longer by a rule: see StepBudget.
  absl::Duration itl_target = absl::Milliseconds(100);
  bool prefix_cache = true;  // the bits are the same without
  int max_running_requests = 256;
  int max_waiting_requests = 1024;
  int64_t max_waiting_tokens = 1 << 20;
  uint64_t max_waiting_bytes = uint64_t{256} << 20;     // their prompts, and the room for their events
  std::function<void(const StepTrace&)> step_observer;  // called on the engine thread
};

struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: all
  float top_p = 1;
  uint64_t seed = 0;  // the random number at a position is a function of (seed, position)
  std::vector<std::pair<int32_t, float>> logit_bias;
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int domain = 0;               // index into spec().domains
  uint64_t tenant = 0;          // requests of different tenants share nothing in the prefix cache
  int max_new_tokens = 0;       // 0 with score_prompt: score only
  SamplingParams sampling;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // besides the model's EOS ids
  std::optional<int> top_logprobs;      // nothing: no logprobs; 0..kMaxTopLogprobs alternatives per token
  bool score_prompt = false;            // an event for every prompt token but the first: log p(token | those before)
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason : uint8_t {
  kStop,    // an EOS or stop token; that token is not emitted
  kLength,  // max_new_tokens, or the end of the context
  kScored,  // a request with max_new_tokens = 0 is done
  kError,   // see status: Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable, Internal
};

struct TokenLogprob {
  int32_t token_id;
  float logprob;  // natural log, of the unmodified distribution (temperature 1, no bias)
};

struct Event {
  enum class Kind : uint8_t { kToken, kPromptScore, kFinished };
  Kind kind;
  int32_t token_id = 0;               // kToken, kPromptScore
  std::optional<float> logprob;       // of token_id, if asked for
  std::span<const TokenLogprob> top;  // best first; valid as long as the handle lives
  FinishReason finish_reason{};       // kFinished
  absl::Status status;                // kFinished: OK unless kError
};

// The caller's end of a request. Destroying it cancels the request. All calls are thread-safe, but only one thread at a
// time may take events.
class RequestHandle {
 public:
  virtual ~RequestHandle() = default;
  // The next event if one is there. After kFinished, nothing more ever comes.
  virtual std::optional<Event> TryNext() = 0;
  // Waits for the next event. Must not be called after kFinished.
  virtual Event Next() = 0;
  // `notify` is called, from a thread that belongs to neither engine nor caller, after events were added, at least once
  // after the last TryNext() that returned nothing; it must not block. Never called after SetNotify(nullptr) returned.
  virtual void SetNotify(std::function<void()> notify) = 0;
  // Asks for the end: kFinished with Cancelled follows within one step, unless the request ended before.
  virtual void Cancel() = 0;
  // Tokens of the prompt that were not computed, for the prefix cache had them. Final once an event is there.
  virtual int cached_prompt_tokens() const = 0;
};

struct DomainStats {
  std::string name;
  uint64_t requests = 0;       // accepted
  uint64_t prompt_tokens = 0;  // computed
  uint64_t generated_tokens = 0;
  uint64_t weight_bytes = 0;  // packed
  // [sparse layer, expert]: tokens computed since start, in order of ModelSpec::SparseLayers(); in the last layer,
  // those whose logits were wanted.
  std::vector<std::vector<uint64_t>> expert_tokens;
};

// A snapshot; never waits for the engine thread.
struct EngineStats {
  int waiting_requests = 0;
  int64_t waiting_tokens = 0;
  uint64_t waiting_bytes = 0;
  int running_requests = 0;
  int max_running_seen = 0;  // the most requests that were running in one step since start
  int kv_blocks_in_use = 0;
  int kv_blocks_cached = 0;  // that no request holds, but whose content can be found in the prefix cache
  int kv_blocks_total = 0;
  // Tokens of requests that were let in, again and again if they gave way: found in the prefix cache, and not found.
  uint64_t prefix_hit_tokens = 0;
  uint64_t prefix_miss_tokens = 0;
  uint64_t prefix_evictions = 0;  // blocks that left the prefix cache because their memory was needed
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_cancelled = 0;
  uint64_t weight_bytes = 0;
  uint64_t shared_weight_bytes = 0;  // of those, mapped from files of the cache
  std::vector<DomainStats> domains;
};

class Engine {
 public:
  // Opens, checks and packs the model, starts the threads. Errors as Checkpoint::Open and Model::Load.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options);
  // Ends all requests with Unavailable, then joins.
  virtual ~Engine() = default;

  virtual const ModelSpec& spec() const = 0;
  virtual const EngineOptions& options() const = 0;  // with the defaults filled in
  // What was loaded. It stays loaded, whatever becomes of the directory.
  virtual const std::vector<DomainGeneration>& generations() const = 0;
  // Null for a model directory without tokenizer.json: such a model takes token ids only.
  virtual const Tokenizer* tokenizer() const = 0;

  // Thread-safe. InvalidArgument: a parameter out of range, or prompt + max_new_tokens past the context (names both
  // numbers). ResourceExhausted: the queue is full, or the request could never fit the KV cache. Unavailable: draining.
  virtual absl::StatusOr<std::unique_ptr<RequestHandle>> Submit(Request request) = 0;

  // From now on Submit answers Unavailable; running and waiting requests go on.
  virtual void StartDraining() = 0;
  // True once no request is waiting or running.
  virtual bool Idle() const = 0;

  virtual EngineStats Stats() const = 0;
};

}  // namespace scion
