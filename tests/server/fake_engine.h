// An engine without a model: a test takes the requests that the server submits, one by one, and says what happens to
// them, token by token. Tokens are bytes: the vocabulary is 0..255, and 256 for the end of text, "<eos>".
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "engine/engine.h"

namespace scion {

inline constexpr int32_t kFakeEos = 256;
inline constexpr int kFakeContext = 64;
inline constexpr int kFakeCachedTokens = 1;  // of every prompt

// Parses "<eos>" where special tokens are to be parsed; ends a text with it where they are to be added and AddsEos.
class FakeTokenizer final : public Tokenizer {
 public:
  FakeTokenizer();
  void SetAddsEos(bool adds) { adds_eos_ = adds; }
  void Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const override;
  std::string_view TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override { return id == kFakeEos; }
  int32_t size() const override { return kFakeEos + 1; }
  std::optional<int32_t> FindSpecial(std::string_view) const override { return std::nullopt; }
  std::optional<int32_t> bos_token_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_token_id() const override { return kFakeEos; }
  const std::optional<std::string>& chat_template() const override { return chat_template_; }

 private:
  std::string bytes_;
  std::atomic<bool> adds_eos_ = false;
  std::optional<std::string> chat_template_;
};

// A request that the server has submitted. Thread-safe; outlives the server's handle.
class FakeRequest : public std::enable_shared_from_this<FakeRequest> {
 public:
  FakeRequest(Request request, class FakeEngine& engine) : request_(std::move(request)), engine_(engine) {}

  const Request& request() const { return request_; }
  std::string PromptText() const { return {request_.prompt.begin(), request_.prompt.end()}; }

  void Emit(int32_t token, std::optional<float> logprob = std::nullopt, std::vector<TokenLogprob> top = {});
  void EmitText(std::string_view text);  // a token per byte
  void EmitScore(int32_t token, float logprob);
  void Finish(FinishReason reason, absl::Status status = absl::OkStatus());

  // True once the server has cancelled it or dropped its handle; waits for that at most `timeout`.
  bool WaitCancelled(absl::Duration timeout = absl::Seconds(10));
  bool cancelled() { return WaitCancelled(absl::ZeroDuration()); }
  // Terminal events that the server has taken.
  int finishes_taken();

 private:
  friend class FakeHandle;
  friend class FakeEngine;
  void Add(Event event, std::vector<TokenLogprob> top);
  void Cancel();

  const Request request_;
  class FakeEngine& engine_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Event> events_;
  std::deque<std::vector<TokenLogprob>> tops_;  // what the events' spans point at
  bool finished_ = false;
  bool cancelled_ = false;
  int finishes_taken_ = 0;
  std::recursive_mutex notify_mutex_;
  std::shared_ptr<std::function<void()>> notify_;
};

class FakeEngine final : public Engine {
 public:
  FakeEngine();
  ~FakeEngine() override;

  // The next request that the server submits; waits for it. Null after ten seconds.
  std::shared_ptr<FakeRequest> Take();
  // Answers every request by itself from now on; Take then gives them too.
  void SetReply(std::function<void(FakeRequest&)> reply);
  // Before the first request.
  void SetDefaultDomain(int domain) { spec_.default_domain = domain; }
  void RemoveTokenizer() { has_tokenizer_ = false; }
  // Whether the tokenizer ends texts with kFakeEos from now on, where special tokens are to be added.
  void SetAddsEos(bool adds) { tokenizer_.SetAddsEos(adds); }
  // What Submit answers from now on, if it is an error.
  void SetSubmitStatus(absl::Status status);
  int submitted();

  const ModelSpec& spec() const override { return spec_; }
  const EngineOptions& options() const override { return options_; }
  const std::vector<DomainGeneration>& generations() const override { return generations_; }
  const Tokenizer* tokenizer() const override { return has_tokenizer_ ? &tokenizer_ : nullptr; }
  absl::StatusOr<std::unique_ptr<RequestHandle>> Submit(Request request) override;
  void StartDraining() override;
  bool Idle() const override;
  EngineStats Stats() const override;

 private:
  friend class FakeRequest;
  friend class FakeHandle;
  void PostNotify(std::shared_ptr<FakeRequest> request);
  void NotifyLoop();

  ModelSpec spec_;
  EngineOptions options_;
  std::vector<DomainGeneration> generations_ = {{"en", 1, "", ""}, {"cpp", 2, "", ""}};
  FakeTokenizer tokenizer_;
  std::atomic<bool> has_tokenizer_ = true;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<FakeRequest>> submitted_;
  std::vector<std::weak_ptr<FakeRequest>> all_;
  std::function<void(FakeRequest&)> reply_;
  absl::Status submit_status_;
  int num_submitted_ = 0;
  bool draining_ = false;
  bool stopping_ = false;
  std::deque<std::shared_ptr<FakeRequest>> to_notify_;
  std::thread notifier_;
};

}  // namespace scion
