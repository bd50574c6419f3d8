// What the engine thread and the caller of a request share: a fixed array of event slots that one writes and the other
// reads, and the wish to cancel.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler/scheduler.h"

namespace scion {

class RequestState : public Sequence, public std::enable_shared_from_this<RequestState> {
 public:
  // Makes all the memory that the request will ever need. num_slots: most events, the terminal one included.
  RequestState(Request request, int num_slots, int max_tokens, int max_blocks);
  // How much that is, to be asked before it is made.
  static uint64_t BytesFor(const Request& request, int num_slots, int max_tokens, int max_blocks);

  // ---- the engine thread ----
  const Request& request() const { return request_; }
  uint64_t bytes() const { return bytes_; }  // as BytesFor
  // The slot for the next event's alternatives: [top_logprobs], valid until Publish.
  std::span<TokenLogprob> TopSlot();
  void PublishToken(Event::Kind kind, int32_t token_id, std::optional<float> logprob);
  void PublishFinished(FinishReason reason, absl::Status status);

  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  int num_generated() const { return static_cast<int>(tokens.size()) - num_prompt_tokens; }
  bool has_started = false;   // has been in a step
  bool has_finished = false;  // the terminal event is out

  // Positions [begin, end) of the sequence have been computed. What lies before and never was has come from the prefix
  // cache.
  void TakeNote(int begin, int end);

  // True if nobody has asked since the last NotifyCaller: then the caller must be put on the list of those to notify.
  bool MarkForNotify() { return has_notify_.load() && !notify_pending_.exchange(true); }
  void NotifyCaller();

  // ---- the caller ----
  std::optional<Event> TryNext();
  Event Next();
  void SetNotify(std::function<void()> notify);
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  int cached_prompt_tokens() const { return cached_prompt_tokens_.load(std::memory_order_relaxed); }

 private:
  struct Slot {
    Event::Kind kind;
    int32_t token_id;
    std::optional<float> logprob;
  };

  Event EventAt(uint32_t index);

  const Request request_;
  const uint64_t bytes_;
  const size_t num_top_;
  std::vector<Slot> slots_;
  std::vector<TokenLogprob> top_;  // [slots, num_top]
  FinishReason finish_reason_{};
  absl::Status status_;
  std::atomic<uint32_t> produced_{0};
  uint32_t consumed_ = 0;
  std::atomic<bool> cancelled_{false};
  int noted_end_ = 0;  // the largest `end` so far
  std::atomic<int> cached_prompt_tokens_{0};

  std::atomic<bool> has_notify_{false};
  std::atomic<bool> notify_pending_{false};
  std::recursive_mutex notify_mutex_;  // a notify function may drop the handle, which takes the function away
  std::shared_ptr<std::function<void()>> notify_;
};

// The thread that calls the callers' notify functions, so that the engine thread never runs foreign code.
class Notifier {
 public:
  explicit Notifier(size_t max_requests);
  ~Notifier();
  // Any thread. Takes over the states, and leaves the list empty. Does not allocate while no more than max_requests are
  // listed.
  void Post(std::vector<std::shared_ptr<RequestState>>& states);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<RequestState>> posted_;
  std::vector<std::shared_ptr<RequestState>> taken_;  // the thread's own
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace scion
