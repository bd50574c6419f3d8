#include "tests/server/fake_engine.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace scion {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);
constexpr std::string_view kEosText = "<eos>";

}  // namespace

FakeTokenizer::FakeTokenizer() {
  for (int i = 0; i < 256; ++i) bytes_.push_back(static_cast<char>(i));
}

void FakeTokenizer::Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const {
  while (!text.empty()) {
    const bool is_eos = options.parse_special && text.starts_with(kEosText);
    ids.push_back(is_eos ? kFakeEos : static_cast<unsigned char>(text[0]));
    text.remove_prefix(is_eos ? kEosText.size() : 1);
  }
  if (options.add_special && adds_eos_) ids.push_back(kFakeEos);
}

std::string_view FakeTokenizer::TokenBytes(int32_t id) const {
  if (id == kFakeEos) return kEosText;
  if (id < 0 || id > kFakeEos) return "";
  return std::string_view(bytes_).substr(static_cast<size_t>(id), 1);
}

// ---- requests ----

class FakeHandle final : public RequestHandle {
 public:
  explicit FakeHandle(std::shared_ptr<FakeRequest> request) : request_(std::move(request)) {}
  ~FakeHandle() override {
    SetNotify(nullptr);
    request_->Cancel();
  }
  std::optional<Event> TryNext() override {
    std::lock_guard lock(request_->mutex_);
    if (request_->events_.empty()) return std::nullopt;
    Event event = std::move(request_->events_.front());
    request_->events_.pop_front();
    if (event.kind == Event::Kind::kFinished) ++request_->finishes_taken_;
    return event;
  }
  Event Next() override {
    std::optional<Event> event;
    while (!(event = TryNext())) std::this_thread::yield();
    return *event;
  }
  void SetNotify(std::function<void()> notify) override {
    const bool wants = notify != nullptr;
    {
      std::lock_guard lock(request_->notify_mutex_);
      request_->notify_ = wants ? std::make_shared<std::function<void()>>(std::move(notify)) : nullptr;
    }
    if (wants) request_->engine_.PostNotify(request_);
  }
  void Cancel() override { request_->Cancel(); }
  int cached_prompt_tokens() const override { return kFakeCachedTokens; }

 private:
  std::shared_ptr<FakeRequest> request_;
};

void FakeRequest::Add(Event event, std::vector<TokenLogprob> top) {
  {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    finished_ = event.kind == Event::Kind::kFinished;
    event.top = tops_.emplace_back(std::move(top));
    events_.push_back(std::move(event));
  }
  engine_.PostNotify(shared_from_this());
}

void FakeRequest::Emit(int32_t token, std::optional<float> logprob, std::vector<TokenLogprob> top) {
  Event event{.kind = Event::Kind::kToken, .token_id = token, .logprob = logprob, .top = {}, .status = {}};
  Add(std::move(event), std::move(top));
}

void FakeRequest::EmitText(std::string_view text) {
  for (unsigned char c : text) Emit(c);
}

void FakeRequest::EmitScore(int32_t token, float logprob) {
  Event event{.kind = Event::Kind::kPromptScore, .token_id = token, .logprob = logprob, .top = {}, .status = {}};
  Add(std::move(event), {});
}

void FakeRequest::Finish(FinishReason reason, absl::Status status) {
  Event event{
      .kind = Event::Kind::kFinished, .logprob = {}, .top = {}, .finish_reason = reason, .status = std::move(status)};
  Add(std::move(event), {});
}

void FakeRequest::Cancel() {
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  wake_.notify_all();
  Finish(FinishReason::kError, absl::CancelledError("cancelled"));
}

bool FakeRequest::WaitCancelled(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  return wake_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [this] { return cancelled_; });
}

int FakeRequest::finishes_taken() {
  std::lock_guard lock(mutex_);
  return finishes_taken_;
}

// ---- the engine ----

FakeEngine::FakeEngine() {
  spec_.model_type = "scion";
  spec_.vocab_size = kFakeEos + 1;
  spec_.max_position_embeddings = kFakeContext;
  spec_.layers.resize(2);
  spec_.layers[1].ffn.router = RouterKind::kTable;
  spec_.domains = {{.name = "en", .num_experts = 2}, {.name = "cpp", .num_experts = 3}};
  spec_.eos_token_ids = {kFakeEos};
  options_.tier = kernels::Tier::kPortable;
  options_.num_threads = 1;
  notifier_ = std::thread([this] { NotifyLoop(); });
}

FakeEngine::~FakeEngine() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  notifier_.join();
}

std::shared_ptr<FakeRequest> FakeEngine::Take() {
  std::unique_lock lock(mutex_);
  if (!wake_.wait_for(lock, kPatience, [this] { return !submitted_.empty(); })) return nullptr;
  std::shared_ptr<FakeRequest> request = std::move(submitted_.front());
  submitted_.pop_front();
  return request;
}

void FakeEngine::SetReply(std::function<void(FakeRequest&)> reply) {
  std::lock_guard lock(mutex_);
  reply_ = std::move(reply);
}

void FakeEngine::SetSubmitStatus(absl::Status status) {
  std::lock_guard lock(mutex_);
  submit_status_ = std::move(status);
}

int FakeEngine::submitted() {
  std::lock_guard lock(mutex_);
  return num_submitted_;
}

absl::StatusOr<std::unique_ptr<RequestHandle>> FakeEngine::Submit(Request request) {
  auto fake = std::make_shared<FakeRequest>(std::move(request), *this);
  std::function<void(FakeRequest&)> reply;
  {
    std::lock_guard lock(mutex_);
    if (!submit_status_.ok()) return submit_status_;
    if (draining_) return absl::UnavailableError("the server is shutting down");
    submitted_.push_back(fake);
    all_.push_back(fake);
    ++num_submitted_;
    reply = reply_;
  }
  wake_.notify_all();
  if (reply) reply(*fake);
  return std::make_unique<FakeHandle>(std::move(fake));
}

void FakeEngine::StartDraining() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool FakeEngine::Idle() const {
  std::lock_guard lock(mutex_);
  for (const std::weak_ptr<FakeRequest>& weak : all_) {
    const std::shared_ptr<FakeRequest> request = weak.lock();
    if (request == nullptr) continue;
    std::lock_guard request_lock(request->mutex_);
    if (!request->finished_) return false;
  }
  return true;
}

EngineStats FakeEngine::Stats() const {
  EngineStats stats;
  stats.waiting_requests = 3;
  stats.running_requests = 2;
  stats.max_running_seen = 7;
  stats.kv_blocks_in_use = 5;
  stats.kv_blocks_total = 100;
  stats.kv_blocks_cached = 6;
  stats.prefix_hit_tokens = 64;
  stats.prefix_miss_tokens = 65;
  stats.prefix_evictions = 8;
  stats.weight_bytes = 1000;
  stats.domains.resize(2);
  stats.domains[0].name = "en";
  stats.domains[0].weight_bytes = 300;
  stats.domains[0].requests = 21;
  stats.domains[0].prompt_tokens = 22;
  stats.domains[0].generated_tokens = 23;
  stats.domains[0].expert_tokens = {{11, 12}};
  stats.domains[1].name = "cpp";
  stats.domains[1].weight_bytes = 400;
  stats.domains[1].requests = 97;
  stats.domains[1].prompt_tokens = 98;
  stats.domains[1].generated_tokens = 99;
  stats.domains[1].expert_tokens = {{13, 14}};
  return stats;
}

void FakeEngine::PostNotify(std::shared_ptr<FakeRequest> request) {
  {
    std::lock_guard lock(mutex_);
    to_notify_.push_back(std::move(request));
  }
  wake_.notify_all();
}

void FakeEngine::NotifyLoop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !to_notify_.empty(); });
    if (to_notify_.empty()) return;
    std::shared_ptr<FakeRequest> request = std::move(to_notify_.front());
    to_notify_.pop_front();
    lock.unlock();
    {
      std::lock_guard notify_lock(request->notify_mutex_);
      if (std::shared_ptr<std::function<void()>> notify = request->notify_) (*notify)();
    }
    request.reset();
    lock.lock();
  }
}

}  // namespace scion
