#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/thread_pool.h"
#include "engine/engine_core.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/request_state.h"

namespace scion {
namespace {

// Rows of logits that are held at once: [kLogitTileRows, vocab_size] floats.
constexpr int kLogitTileRows = 32;

absl::Status CheckOptions(const EngineOptions& o) {
  if (o.max_running_requests < 1 || o.max_step_tokens < 1 || o.prefill_chunk_tokens < 1 || o.max_waiting_requests < 1 ||
      o.max_waiting_tokens < 1 || o.max_waiting_bytes < 1) {
    return absl::InvalidArgumentError("limits on steps, chunks, running and waiting requests must be at least 1");
  }
  if (o.max_running_requests > o.max_step_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("max_running_requests (", o.max_running_requests,
                                                   ") is larger than max_step_tokens (", o.max_step_tokens,
                                                   "): a step must have room for one token of every running request"));
  }
  if (o.itl_target <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("the target for the inter-token latency must be above 0, is ",
                                                   absl::FormatDuration(o.itl_target)));
  }
  if (o.num_threads < 0 || o.num_threads > 1024) {
    return absl::InvalidArgumentError(absl::StrCat("threads must be from 1 to 1024, is ", o.num_threads));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const ModelSpec& spec, const Request& r) {
  const SamplingParams& s = r.sampling;
  const int vocab = spec.vocab_size;
  const int context = spec.max_position_embeddings;
  if (r.domain < 0 || r.domain >= static_cast<int>(spec.domains.size())) {
    return absl::InvalidArgumentError(absl::StrCat("domain index ", r.domain, " of ", spec.domains.size()));
  }
  if (r.prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  if (r.max_new_tokens < 0 || (r.max_new_tokens == 0 && !r.score_prompt)) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens must be at least 1, is ", r.max_new_tokens));
  }
  const uint64_t wanted = r.prompt.size() + static_cast<uint64_t>(r.max_new_tokens);
  if (wanted > static_cast<uint64_t>(context)) {
    return absl::InvalidArgumentError(absl::StrCat("the model's context is ", context,
                                                   " tokens, but the request needs ", wanted, ": ", r.prompt.size(),
                                                   " in the prompt and ", r.max_new_tokens, " to be generated"));
  }
  for (int32_t id : r.prompt) {
    if (id < 0 || id >= vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is outside the vocabulary of ", vocab));
    }
  }
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature must be a number from 0 up, is ", s.temperature));
  }
  if (s.top_k < 0) return absl::InvalidArgumentError(absl::StrCat("top_k must be at least 0, is ", s.top_k));
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p must be above 0 and at most 1, is ", s.top_p));
  }
  if (s.logit_bias.size() > kMaxLogitBias) {
    return absl::InvalidArgumentError(
        absl::StrCat("logit_bias has ", s.logit_bias.size(), " entries, at most ", kMaxLogitBias, " are taken"));
  }
  for (auto [id, bias] : s.logit_bias) {
    if (id < 0 || id >= vocab || !std::isfinite(bias)) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias of token id ", id, " is ", bias, ": ids lie in [0, ",
                                                     vocab, "), biases are finite"));
    }
  }
  if (r.stop_token_ids.size() > kMaxStopTokens) {
    return absl::InvalidArgumentError(absl::StrCat("at most ", kMaxStopTokens, " stop_token_ids are taken"));
  }
  if (r.top_logprobs && (*r.top_logprobs < 0 || *r.top_logprobs > std::min(kMaxTopLogprobs, vocab))) {
    return absl::InvalidArgumentError(
        absl::StrCat("logprobs must be from 0 to ", std::min(kMaxTopLogprobs, vocab), ", is ", *r.top_logprobs));
  }
  return absl::OkStatus();
}

class Handle final : public RequestHandle {
 public:
  Handle(std::shared_ptr<RequestState> state, EngineCore& core) : state_(std::move(state)), core_(core) {}
  ~Handle() override {
    state_->SetNotify(nullptr);
    state_->Cancel();
  }
  std::optional<Event> TryNext() override { return state_->TryNext(); }
  Event Next() override { return state_->Next(); }
  void SetNotify(std::function<void()> notify) override {
    const bool wants = notify != nullptr;
    state_->SetNotify(std::move(notify));
    // Events may have come before anybody wanted to hear of them.
    if (wants) core_.Notify(state_);
  }
  void Cancel() override { state_->Cancel(); }
  int cached_prompt_tokens() const override { return state_->cached_prompt_tokens(); }

 private:
  std::shared_ptr<RequestState> state_;
  EngineCore& core_;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineOptions options, std::vector<DomainGeneration> generations, std::unique_ptr<Tokenizer> tokenizer,
             std::unique_ptr<ThreadPool> pool, std::unique_ptr<Model> model, KvCache cache)
      : options_(std::move(options)),
        generations_(std::move(generations)),
        tokenizer_(std::move(tokenizer)),
        pool_(std::move(pool)),
        model_(std::move(model)),
        cache_(std::move(cache)),
        core_(options_, *model_, *pool_, cache_) {}

  const ModelSpec& spec() const override { return model_->spec(); }
  const EngineOptions& options() const override { return options_; }
  const std::vector<DomainGeneration>& generations() const override { return generations_; }
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }

  absl::StatusOr<std::unique_ptr<RequestHandle>> Submit(Request request) override {
    if (draining_.load()) return absl::UnavailableError("the server is shutting down");
    absl::Status status = CheckRequest(spec(), request);
    if (!status.ok()) return status;
    const int prompt_tokens = static_cast<int>(request.prompt.size());
    const int max_tokens = prompt_tokens + request.max_new_tokens;
    const int max_blocks = cache_.blocks_for(max_tokens);
    if (max_blocks > cache_.num_blocks()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the request may need ", max_tokens, " tokens of KV cache, the server has ",
                       cache_.num_blocks() * cache_.block_tokens(), " (--kv-cache-mb)"));
    }
    const int slots = request.max_new_tokens + (request.score_prompt ? prompt_tokens - 1 : 0) + 1;
    status = core_.ClaimQueue(prompt_tokens, RequestState::BytesFor(request, slots, max_tokens, max_blocks));
    if (!status.ok()) return status;
    auto state = std::make_shared<RequestState>(std::move(request), slots, max_tokens, max_blocks);
    auto handle = std::make_unique<Handle>(state, core_);
    status = core_.Add(std::move(state));
    if (!status.ok()) return status;
    return handle;
  }

  void StartDraining() override { draining_.store(true); }
  bool Idle() const override { return core_.idle(); }

  EngineStats Stats() const override {
    EngineStats stats = core_.Stats();
    stats.weight_bytes = model_->weight_bytes();
    stats.shared_weight_bytes = model_->shared_weight_bytes();
    for (size_t d = 0; d < stats.domains.size(); ++d) {
      const int domain = static_cast<int>(d);
      stats.domains[d].weight_bytes = model_->domain_weight_bytes(domain);
      for (int layer : spec().SparseLayers()) {
        std::vector<uint64_t>& loads = stats.domains[d].expert_tokens.emplace_back();
        for (int e = 0; e < spec().domains[d].num_experts; ++e) loads.push_back(model_->ExpertTokens(layer, domain, e));
      }
    }
    return stats;
  }

 private:
  const EngineOptions options_;
  std::vector<DomainGeneration> generations_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Model> model_;
  KvCache cache_;
  std::atomic<bool> draining_{false};
  EngineCore core_;  // last: its thread uses all of the above
};

// What lies beside the weights, or with them in a GGUF file; null where there is none.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint) {
  if (const GgufVocabulary* vocabulary = checkpoint.vocabulary()) return Tokenizer::FromGguf(*vocabulary);
  if (!std::filesystem::exists(checkpoint.directory() / "tokenizer.json")) return nullptr;
  return Tokenizer::Load(checkpoint.directory());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  if (options.num_threads == 0)
    options.num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  if (!options.tier) {
    absl::StatusOr<kernels::Tier> tier = kernels::ChooseTier();
    if (!tier.ok()) return tier.status();
    options.tier = *tier;
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(options.model_directory);
  if (!checkpoint.ok()) return checkpoint.status();
  if (!options.kv_type) options.kv_type = DefaultKvType(**checkpoint, options.weights);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(**checkpoint);
  if (!tokenizer.ok()) return tokenizer.status();
  auto pool = std::make_unique<ThreadPool>(options.num_threads);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**checkpoint,
                                                             {.tier = *options.tier,
                                                              .weights = options.weights,
                                                              .kv_type = *options.kv_type,
                                                              .max_step_rows = options.max_step_tokens,
                                                              .max_logit_rows = kLogitTileRows,
                                                              .pack_cache = options.pack_cache},
                                                             *pool);
  if (!model.ok()) return model.status();

  // As many blocks as the budget pays for, but no more than all running requests could ever fill.
  const absl::StatusOr<size_t> block_bytes = KvCache::BlockStride((*model)->KvPlanes(), kernels::kKvBlockTokens);
  if (!block_bytes.ok()) return block_bytes.status();
  const uint64_t useful_blocks =
      static_cast<uint64_t>(options.max_running_requests) *
      static_cast<uint64_t>((checkpoint.value()->spec().max_position_embeddings + kernels::kKvBlockTokens - 1) /
                            kernels::kKvBlockTokens);
  const uint64_t blocks = std::min<uint64_t>({options.kv_cache_bytes / *block_bytes, useful_blocks, 1u << 30});
  if (blocks == 0) {
    return absl::InvalidArgumentError(absl::StrCat("a KV cache of ", options.kv_cache_bytes,
                                                   " bytes has no room for one block of ", *block_bytes, " bytes"));
  }
  absl::StatusOr<KvCache> cache =
      KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, static_cast<int>(blocks));
  if (!cache.ok()) return cache.status();
  return std::make_unique<EngineImpl>(std::move(options), DomainGenerations(**checkpoint), *std::move(tokenizer),
                                      std::move(pool), *std::move(model), *std::move(cache));
}

}  // namespace scion
