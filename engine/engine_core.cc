#include "engine/engine_core.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace scion {

EngineCore::EngineCore(const EngineOptions& options, Model& model, ThreadPool& pool, KvCache& cache)
    : options_(options),
      model_(model),
      pool_(pool),
      cache_(cache),
      kernels_(kernels::GetKernels(model.options().tier)),
      prefixes_(options.prefix_cache
                    ? std::optional<PrefixCache>(std::in_place, cache.block_tokens(), cache.num_blocks())
                    : std::nullopt),
      scheduler_({.max_step_tokens = options.max_step_tokens,
                  .prefill_chunk_tokens = options.prefill_chunk_tokens,
                  .max_running = options.max_running_requests,
                  .num_layers = static_cast<int>(model.spec().layers.size())},
                 static_cast<int>(model.spec().domains.size()), cache, prefixes_ ? &*prefixes_ : nullptr),
      num_layers_(static_cast<int>(model.spec().layers.size())),
      num_full_layers_(std::max(1, num_layers_ - 1)),
      budget_(options.itl_target, options.max_step_tokens, num_full_layers_),
      notifier_(static_cast<size_t>(options.max_running_requests + options.max_waiting_requests)),
      domain_counters_(model.spec().domains.size()) {
  const size_t rows = static_cast<size_t>(options.max_step_tokens);
  const size_t chunks = static_cast<size_t>(options.max_running_requests);
  const size_t requests = chunks + static_cast<size_t>(options.max_waiting_requests);
  const size_t tile = static_cast<size_t>(model.options().max_logit_rows);
  inbox_.reserve(requests);
  taken_.reserve(requests);
  live_.reserve(requests);
  to_notify_.reserve(requests);
  step_tokens_.reserve(rows);
  step_chunks_.reserve(chunks);
  logit_row_indices_.reserve(rows);
  logit_rows_.reserve(rows);
  scored_only_.reserve(chunks);
  logits_.resize(tile * static_cast<size_t>(model.spec().vocab_size));
  top_.resize(tile * kMaxTopLogprobs);
  for (int i = 0; i < pool.num_threads(); ++i) samplers_.emplace_back(kernels_, model.spec().vocab_size);
  thread_ = std::thread([this] { Loop(); });
}

EngineCore::~EngineCore() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

absl::Status EngineCore::ClaimQueue(int prompt_tokens, uint64_t bytes) {
  const int requests = waiting_requests_.fetch_add(1) + 1;
  const int64_t tokens = waiting_tokens_.fetch_add(prompt_tokens) + prompt_tokens;
  const uint64_t all_bytes = waiting_bytes_.fetch_add(bytes) + bytes;
  std::string why;
  if (requests > options_.max_waiting_requests) {
    why = absl::StrCat(options_.max_waiting_requests, " requests are waiting (--max-waiting)");
  } else if (tokens > options_.max_waiting_tokens) {
    why = absl::StrCat("at most ", options_.max_waiting_tokens, " prompt tokens may wait (--max-waiting-tokens)");
  } else if (all_bytes > options_.max_waiting_bytes) {
    why = absl::StrCat("waiting requests may hold at most ", options_.max_waiting_bytes, " bytes (--max-waiting-mb), ",
                       "this one needs ", bytes, "; fewer max_tokens or logprobs need less");
  }
  if (why.empty()) return absl::OkStatus();
  ReleaseQueue(prompt_tokens, bytes);
  return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", why));
}

void EngineCore::ReleaseQueue(int prompt_tokens, uint64_t bytes) {
  waiting_bytes_.fetch_sub(bytes);
  waiting_tokens_.fetch_sub(prompt_tokens);
  waiting_requests_.fetch_sub(1);
}

absl::Status EngineCore::Add(StatePtr state) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) {
      ReleaseQueue(*state);
      return absl::UnavailableError("the server is shutting down");
    }
    live_requests_.fetch_add(1);
    domain_counters_[static_cast<size_t>(state->domain)].requests.fetch_add(1, std::memory_order_relaxed);
    inbox_.push_back(std::move(state));
  }
  wake_.notify_one();
  return absl::OkStatus();
}

EngineStats EngineCore::Stats() const {
  EngineStats stats;
  stats.waiting_requests = waiting_requests_.load();
  stats.waiting_tokens = waiting_tokens_.load();
  stats.waiting_bytes = waiting_bytes_.load();
  stats.running_requests = running_requests_.load();
  stats.max_running_seen = max_running_seen_.load();
  stats.kv_blocks_in_use = cache_.blocks_in_use();
  stats.kv_blocks_cached = cache_.blocks_kept();
  stats.kv_blocks_total = cache_.num_blocks();
  stats.prefix_hit_tokens = prefix_hit_tokens_.load();
  stats.prefix_miss_tokens = prefix_miss_tokens_.load();
  stats.prefix_evictions = prefix_evictions_.load();
  stats.steps = steps_.load();
  stats.preemptions = preemptions_.load();
  stats.requests_finished = finished_.load();
  stats.requests_cancelled = cancelled_.load();
  for (size_t d = 0; d < domain_counters_.size(); ++d) {
    DomainStats domain;
    domain.name = model_.spec().domains[d].name;
    domain.requests = domain_counters_[d].requests.load();
    domain.prompt_tokens = domain_counters_[d].prompt_tokens.load();
    domain.generated_tokens = domain_counters_[d].generated_tokens.load();
    stats.domains.push_back(std::move(domain));
  }
  return stats;
}

void EngineCore::Loop() {
  while (TakeNewRequests()) {
    EndUnwanted();
    const int sequences = NumToDecode();
    const ScheduledStep step = scheduler_.Schedule({
        .tokens = [&](int decode_rows,
                      int layers) { return budget_.Rows(decode_rows, sequences, std::min(layers, num_full_layers_)); },
        .layers =
            [&](int decode_rows, int rows, int left) {
              const int full_left = std::max(1, left - 1);
              const int layers = budget_.Layers(decode_rows, rows, sequences, full_left);
              return layers == full_left ? left : layers;
            },
    });
    // Before the step's events are out: who has seen them finds them counted.
    PublishCounters();
    if (!step.chunks.empty()) RunStep(step, sequences);
  }
}

int EngineCore::NumToDecode() const {
  const auto count = std::count_if(live_.begin(), live_.end(),
                                   [](const StatePtr& state) { return state->request().max_new_tokens > 0; });
  return std::min(static_cast<int>(count), options_.max_running_requests);
}

void EngineCore::PublishCounters() {
  preemptions_.store(scheduler_.preemptions(), std::memory_order_relaxed);
  prefix_hit_tokens_.store(scheduler_.prefix_hit_tokens(), std::memory_order_relaxed);
  prefix_miss_tokens_.store(scheduler_.prefix_miss_tokens(), std::memory_order_relaxed);
  prefix_evictions_.store(scheduler_.prefix_evictions(), std::memory_order_relaxed);
}

bool EngineCore::TakeNewRequests() {
  {
    std::unique_lock lock(mutex_);
    // With a live request there is always a step to run: Submit refuses what could never fit the cache.
    if (live_.empty()) wake_.wait(lock, [this] { return stopping_ || !inbox_.empty(); });
    taken_.swap(inbox_);
    ending_all_ = stopping_;
    if (stopping_ && live_.empty() && taken_.empty()) return false;
  }
  for (StatePtr& state : taken_) {
    scheduler_.Add(state.get());
    live_.push_back(std::move(state));
  }
  taken_.clear();
  return true;
}

void EngineCore::EndUnwanted() {
  const absl::Time now = absl::Now();
  for (const StatePtr& state : live_) {
    if (state->cancelled()) {
      Finish(*state, FinishReason::kError, absl::CancelledError("cancelled by the client"));
    } else if (ending_all_) {
      Finish(*state, FinishReason::kError, absl::UnavailableError("the server is shutting down"));
    } else if (now >= state->request().deadline) {
      Finish(*state, FinishReason::kError, absl::DeadlineExceededError("the request's deadline has passed"));
    }
  }
  std::erase_if(live_, [](const StatePtr& state) { return state->has_finished; });
  PostNotifications();
}

void EngineCore::Notify(const StatePtr& state) {
  if (!state->MarkForNotify()) return;
  std::vector<StatePtr> one = {state};
  notifier_.Post(one);
}

void EngineCore::NotifyLater(RequestState& state) {
  if (state.MarkForNotify()) to_notify_.push_back(state.shared_from_this());
}

void EngineCore::PostNotifications() {
  if (!to_notify_.empty()) notifier_.Post(to_notify_);
}

void EngineCore::Finish(RequestState& state, FinishReason reason, absl::Status status) {
  scheduler_.Remove(&state);
  if (state.has_started) {
    running_requests_.fetch_sub(1, std::memory_order_relaxed);
  } else {
    ReleaseQueue(state);
  }
  (absl::IsCancelled(status) ? cancelled_ : finished_).fetch_add(1, std::memory_order_relaxed);
  live_requests_.fetch_sub(1);
  state.has_finished = true;
  state.PublishFinished(reason, std::move(status));
  NotifyLater(state);
}

void EngineCore::ComposeStep(const ScheduledStep& step) {
  step_tokens_.clear();
  step_chunks_.clear();
  logit_row_indices_.clear();
  logit_rows_.clear();
  scored_only_.clear();
  StepTrace trace;
  uint64_t domains_seen = 0;
  const size_t num_whole = step.chunks.size() - static_cast<size_t>(step.num_layered);
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const ScheduledChunk& chunk = step.chunks[i];
    const bool passes_last_layer = i < num_whole || step.layer_end == num_layers_;
    RequestState& state = static_cast<RequestState&>(*chunk.sequence);
    if (!state.has_started) {
      state.has_started = true;
      ReleaseQueue(state);
      running_requests_.fetch_add(1, std::memory_order_relaxed);
    }
    const int begin = state.num_computed;
    const int end = begin + chunk.num_tokens;
    step_tokens_.insert(step_tokens_.end(), state.tokens.begin() + begin, state.tokens.begin() + end);
    step_chunks_.push_back({.domain = state.domain,
                            .row_begin = chunk.row_begin,
                            .num_rows = chunk.num_tokens,
                            .position = begin,
                            .blocks = state.blocks,
                            .held_row = chunk.held_row});
    const bool decodes = begin >= state.num_prompt_tokens;
    (decodes ? trace.decode_rows : trace.prefill_rows) += chunk.num_tokens;
    domains_seen |= uint64_t{1} << (state.domain % 64);
    if (!passes_last_layer) continue;

    const auto want_logits = [&](int position, bool scores_prompt) {
      logit_row_indices_.push_back(chunk.row_begin + position - begin);
      logit_rows_.push_back(
          {.state = &state, .position = position, .scores_prompt = scores_prompt, .token_id = 0, .logprob = 0});
    };
    if (state.wants_prompt_logits) {
      // Position p scores the prompt's token p + 1. After a preemption, those that are out already are passed over.
      for (int p = std::max(begin, state.num_scored); p < std::min(end, state.num_prompt_tokens - 1); ++p) {
        want_logits(p, true);
      }
    }
    if (chunk.completes && state.request().max_new_tokens > 0) want_logits(end - 1, false);
  }
  const int sequences = static_cast<int>(step.chunks.size());
  if (sequences > max_running_seen_.load(std::memory_order_relaxed)) max_running_seen_.store(sequences);
  if (options_.step_observer) {
    trace.rows = static_cast<int>(step_tokens_.size());
    if (trace.prefill_rows > 0) trace.prefill_layers = step.layer_end - step.layer_begin;
    trace.sequences = sequences;
    trace.domains = std::popcount(domains_seen);
    options_.step_observer(trace);
  }
}

void EngineCore::Evaluate(int first, int i, int thread) {
  LogitRow& row = logit_rows_[static_cast<size_t>(first + i)];
  const size_t vocab = static_cast<size_t>(model_.spec().vocab_size);
  const std::span<float> logits = std::span(logits_).subspan(static_cast<size_t>(i) * vocab, vocab);
  const Request& request = row.state->request();
  if (row.scores_prompt) {
    row.token_id = row.state->tokens[static_cast<size_t>(row.position) + 1];
  } else {
    const SamplingParams& s = request.sampling;
    row.token_id = samplers_[static_cast<size_t>(thread)].Sample(
        logits,
        {.temperature = s.temperature, .top_k = s.top_k, .top_p = s.top_p, .seed = s.seed, .logit_bias = s.logit_bias},
        row.position + 1);
  }
  if (row.scores_prompt || request.top_logprobs) row.logprob = LogprobOf(kernels_, logits, row.token_id);
  if (request.top_logprobs) {
    TopLogprobs(
        kernels_, logits,
        std::span(top_).subspan(static_cast<size_t>(i * kMaxTopLogprobs), static_cast<size_t>(*request.top_logprobs)));
  }
}

void EngineCore::Deliver(LogitRow& row, std::span<const Logprob> top) {
  RequestState& state = *row.state;
  const Request& request = state.request();
  const auto publish = [&](Event::Kind kind, bool with_logprob) {
    std::span<TokenLogprob> slot = state.TopSlot();
    for (size_t i = 0; i < slot.size(); ++i) slot[i] = {top[i].token_id, top[i].logprob};
    state.PublishToken(kind, row.token_id, with_logprob ? std::optional(row.logprob) : std::nullopt);
    NotifyLater(state);
  };
  if (row.scores_prompt) {
    state.num_scored = row.position + 1;
    publish(Event::Kind::kPromptScore, true);
    return;
  }
  const auto contains = [&](const auto& ids) { return std::find(ids.begin(), ids.end(), row.token_id) != ids.end(); };
  if ((!request.ignore_eos && contains(model_.spec().eos_token_ids)) || contains(request.stop_token_ids)) {
    Finish(state, FinishReason::kStop, absl::OkStatus());
    return;
  }
  state.tokens.push_back(row.token_id);
  domain_counters_[static_cast<size_t>(state.domain)].generated_tokens.fetch_add(1, std::memory_order_relaxed);
  publish(Event::Kind::kToken, request.top_logprobs.has_value());
  if (state.num_generated() == request.max_new_tokens) Finish(state, FinishReason::kLength, absl::OkStatus());
}

void EngineCore::CountPassed(const ScheduledStep& step, int layer_end) {
  const size_t num_whole = step.chunks.size() - static_cast<size_t>(step.num_layered);
  for (const ScheduledChunk& chunk : layer_end == num_layers_ ? step.chunks : step.chunks.first(num_whole)) {
    RequestState& state = static_cast<RequestState&>(*chunk.sequence);
    const int begin = state.num_computed;
    const int end = begin + chunk.num_tokens;
    state.TakeNote(begin, end);
    const int prompt_rows = std::max(0, std::min(end, state.num_prompt_tokens) - begin);
    domain_counters_[static_cast<size_t>(state.domain)].prompt_tokens.fetch_add(static_cast<uint64_t>(prompt_rows),
                                                                                std::memory_order_relaxed);
    if (chunk.completes && state.request().max_new_tokens == 0) scored_only_.push_back(&state);
  }
  if (layer_end == step.layer_end) return;
  // The layered chunks' logits, which come last, are still to come.
  const int whole_rows = static_cast<int>(step_tokens_.size()) - step.num_layered_rows;
  const auto first = std::ranges::lower_bound(logit_row_indices_, whole_rows);
  logit_rows_.resize(static_cast<size_t>(first - logit_row_indices_.begin()));
}

void EngineCore::RunStep(const ScheduledStep& step, int sequences) {
  ComposeStep(step);
  const int rows = static_cast<int>(step_tokens_.size());
  const int whole_rows = rows - step.num_layered_rows;
  const absl::Time begin = absl::Now();
  const auto goes_on = [&](int layer) {
    return layer >= num_full_layers_ || budget_.HasTime({.rows = rows,
                                                         .whole_rows = whole_rows,
                                                         .layers = layer,
                                                         .layered = layer - step.layer_begin,
                                                         .elapsed = absl::Now() - begin},
                                                        sequences);
  };
  const LayersPassed passed = model_.Forward({.token_ids = step_tokens_,
                                              .chunks = step_chunks_,
                                              .logit_rows = logit_row_indices_,
                                              .num_layered_rows = step.num_layered_rows,
                                              .layers = {.begin = step.layer_begin, .end = step.layer_end},
                                              .goes_on = goes_on},
                                             cache_);
  CountPassed(step, passed.end);
  scheduler_.Complete(passed.end);

  const int tile = model_.options().max_logit_rows;
  const int num_rows = static_cast<int>(logit_rows_.size());
  for (int first = 0; first < num_rows; first += tile) {
    const int count = std::min(tile, num_rows - first);
    model_.Logits(first, count, logits_.data());
    pool_.ParallelFor(count, [&](int i, int thread) { Evaluate(first, i, thread); });
    for (int i = 0; i < count; ++i) {
      Deliver(logit_rows_[static_cast<size_t>(first + i)],
              std::span(top_).subspan(static_cast<size_t>(i * kMaxTopLogprobs), kMaxTopLogprobs));
    }
    PostNotifications();
  }
  const absl::Duration time = absl::Now() - begin;
  const bool scores_prompts = logit_rows_.size() > step_chunks_.size();
  if (step.num_layered == 0) {
    budget_.StepTook(rows, time);
  } else {
    budget_.LayeredStepTook({.rows = rows,
                             .whole_rows = whole_rows,
                             .layers = std::max(1, std::min(passed.end, num_full_layers_) - step.layer_begin),
                             .in_layers = passed.layered_time,
                             .in_others = passed.others_time,
                             // Logits of whole prompts say nothing of steps without them.
                             .time = scores_prompts ? passed.layered_time + passed.others_time : time});
  }
  for (RequestState* state : scored_only_) Finish(*state, FinishReason::kScored, absl::OkStatus());
  PostNotifications();
  std::erase_if(live_, [](const StatePtr& state) { return state->has_finished; });
  steps_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace scion
