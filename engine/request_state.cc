#include "engine/request_state.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace scion {

uint64_t RequestState::BytesFor(const Request& request, int num_slots, int max_tokens, int max_blocks) {
  const uint64_t top_bytes = static_cast<uint64_t>(request.top_logprobs.value_or(0)) * sizeof(TokenLogprob);
  return sizeof(RequestState) + static_cast<uint64_t>(num_slots) * (sizeof(Slot) + top_bytes) +
         (static_cast<uint64_t>(max_tokens) + request.prompt.size() + request.stop_token_ids.size()) * sizeof(int32_t) +
         static_cast<uint64_t>(max_blocks) * sizeof(int32_t) +
         request.sampling.logit_bias.size() * sizeof(request.sampling.logit_bias[0]);
}

RequestState::RequestState(Request request, int num_slots, int max_tokens, int max_blocks)
    : request_(std::move(request)),
      bytes_(BytesFor(request_, num_slots, max_tokens, max_blocks)),
      num_top_(static_cast<size_t>(request_.top_logprobs.value_or(0))) {
  slots_.resize(static_cast<size_t>(num_slots));
  top_.resize(slots_.size() * num_top_);
  domain = request_.domain;
  tenant = request_.tenant;
  tokens.reserve(static_cast<size_t>(max_tokens));
  tokens = request_.prompt;
  num_prompt_tokens = static_cast<int>(request_.prompt.size());
  wants_prompt_logits = request_.score_prompt;
  blocks.reserve(static_cast<size_t>(max_blocks));
}

void RequestState::TakeNote(int begin, int end) {
  const int cached = std::min(begin, num_prompt_tokens) - noted_end_;
  if (cached > 0) cached_prompt_tokens_.fetch_add(cached, std::memory_order_relaxed);
  noted_end_ = std::max(noted_end_, end);
}

std::span<TokenLogprob> RequestState::TopSlot() {
  return std::span(top_).subspan(produced_.load(std::memory_order_relaxed) * num_top_, num_top_);
}

void RequestState::PublishToken(Event::Kind kind, int32_t token_id, std::optional<float> logprob) {
  const uint32_t index = produced_.load(std::memory_order_relaxed);
  slots_[index] = {kind, token_id, logprob};
  produced_.store(index + 1, std::memory_order_release);
  produced_.notify_one();
}

void RequestState::PublishFinished(FinishReason reason, absl::Status status) {
  finish_reason_ = reason;
  status_ = std::move(status);
  PublishToken(Event::Kind::kFinished, 0, std::nullopt);
}

Event RequestState::EventAt(uint32_t index) {
  const Slot& slot = slots_[index];
  Event event{.kind = slot.kind,
              .token_id = slot.token_id,
              .logprob = slot.logprob,
              .top = {},
              .finish_reason = {},
              .status = {}};
  if (slot.kind == Event::Kind::kFinished) {
    event.finish_reason = finish_reason_;
    event.status = status_;
  } else {
    event.top = std::span(top_).subspan(index * num_top_, num_top_);
  }
  return event;
}

std::optional<Event> RequestState::TryNext() {
  if (consumed_ == produced_.load(std::memory_order_acquire)) return std::nullopt;
  return EventAt(consumed_++);
}

Event RequestState::Next() {
  produced_.wait(consumed_, std::memory_order_acquire);
  return EventAt(consumed_++);
}

void RequestState::SetNotify(std::function<void()> notify) {
  std::lock_guard lock(notify_mutex_);
  notify_ = notify ? std::make_shared<std::function<void()>>(std::move(notify)) : nullptr;
  has_notify_.store(notify_ != nullptr);
}

void RequestState::NotifyCaller() {
  // Cleared first: an event that comes while the function runs asks for another call.
  notify_pending_.store(false);
  std::lock_guard lock(notify_mutex_);
  if (std::shared_ptr<std::function<void()>> notify = notify_) (*notify)();
}

Notifier::Notifier(size_t max_requests) {
  // Both here: the thread may get to run only when steps are under way that are not to allocate.
  posted_.reserve(max_requests);
  taken_.reserve(max_requests);
  thread_ = std::thread([this] { Loop(); });
}

Notifier::~Notifier() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Notifier::Post(std::vector<std::shared_ptr<RequestState>>& states) {
  {
    std::lock_guard lock(mutex_);
    posted_.insert(posted_.end(), std::make_move_iterator(states.begin()), std::make_move_iterator(states.end()));
  }
  states.clear();
  wake_.notify_one();
}

void Notifier::Loop() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !posted_.empty(); });
      if (posted_.empty()) return;
      taken_.swap(posted_);
    }
    for (const std::shared_ptr<RequestState>& state : taken_) state->NotifyCaller();
    taken_.clear();
  }
}

}  // namespace scion
