// A request's life: how it ends, what bounds it while it waits, what is refused, and that its owner is told.
#include <algorithm>
#include <atomic>
#include <random>

#include "tests/engine/engine_fixture.h"

namespace scion {
namespace {

using ::testing::HasSubstr;
using RequestLifeTest = EngineTest;

TEST_F(RequestLifeTest, EveryRequestEndsWithExactlyOneTerminalEventWhateverHappens) {
  EngineOptions options = Options();
  options.kv_cache_bytes = 1 << 18;  // far too small for all: sequences give way
  options.max_running_requests = 16;
  options.prefill_chunk_tokens = 32;
  Start(options);
  std::vector<std::thread> clients;
  std::atomic<int> ended{0};
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(static_cast<unsigned>(c));
      for (int i = 0; i < 25; ++i) {
        Request request = Prompt(1 + static_cast<int>(random() % 150), 1 + static_cast<int>(random() % 60), c % 3);
        if (random() % 7 == 0) request.deadline = absl::Now() + absl::Microseconds(random() % 20000);
        std::unique_ptr<RequestHandle> handle = Submit(std::move(request));
        const unsigned fate = random() % 4;
        if (fate == 0) continue;  // dropped at once
        for (unsigned n = random() % 20; fate == 1 && n > 0; --n) {
          if (handle->Next().kind == Event::Kind::kFinished) break;
        }
        if (fate == 1) continue;  // dropped in mid-stream
        if (fate == 2) handle->Cancel();
        const Result r = Drain(*handle);
        EXPECT_TRUE(r.status.ok() || absl::IsCancelled(r.status) || absl::IsDeadlineExceeded(r.status)) << r.status;
        ++ended;
      }
    });
  }
  for (std::thread& t : clients) t.join();
  EXPECT_GT(ended, 50);
  Await([&] { return engine_->Idle(); });
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.kv_blocks_in_use, 0);
  EXPECT_EQ(stats.waiting_requests, 0);
  EXPECT_EQ(stats.waiting_tokens, 0);
  EXPECT_EQ(stats.waiting_bytes, 0u);
  EXPECT_EQ(stats.running_requests, 0);
  EXPECT_EQ(stats.requests_finished + stats.requests_cancelled, 200u);
}

TEST_F(RequestLifeTest, CancelEndsAQueuedRequestAndARunningOne) {
  Start(GatedOptions());
  std::unique_ptr<RequestHandle> running = Submit(Prompt(4, 500));
  gate_.Allow(1);
  EXPECT_EQ(running->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> queued = Submit(Prompt(4, 500));
  queued->Cancel();
  gate_.Allow(1);
  EXPECT_TRUE(absl::IsCancelled(Drain(*queued).status));
  running->Cancel();
  gate_.Allow(1);
  EXPECT_TRUE(absl::IsCancelled(Drain(*running).status));
  Await([&] { return engine_->Stats().kv_blocks_in_use == 0; });
}

TEST_F(RequestLifeTest, ADeadlineEndsARequestThatWaits) {
  Start(GatedOptions());
  std::unique_ptr<RequestHandle> running = Submit(Prompt(4, 500));
  gate_.Allow(1);
  EXPECT_EQ(running->Next().kind, Event::Kind::kToken);
  Request late = Prompt(4, 5);
  late.deadline = absl::Now();
  std::unique_ptr<RequestHandle> handle = Submit(late);
  gate_.Allow(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Drain(*handle).status));
}

TEST_F(RequestLifeTest, ADeadlineEndsARequestThatRuns) {
  Start(GatedOptions());
  Request request = Prompt(4, 500);
  request.deadline = absl::Now() + absl::Milliseconds(200);
  std::unique_ptr<RequestHandle> handle = Submit(request);
  gate_.Allow(1);
  EXPECT_EQ(handle->Next().kind, Event::Kind::kToken);
  Await([&] { return absl::Now() >= request.deadline; });
  gate_.Allow(1 << 20);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Drain(*handle).status));
}

TEST_F(RequestLifeTest, TheQueueIsBounded) {
  EngineOptions options = GatedOptions();
  options.max_waiting_requests = 2;
  Start(options);
  std::unique_ptr<RequestHandle> running = Submit(Prompt(4, 500));
  gate_.Allow(1);
  EXPECT_EQ(running->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> first = Submit(Prompt(4, 5));
  std::unique_ptr<RequestHandle> second = Submit(Prompt(4, 5));
  absl::StatusOr<std::unique_ptr<RequestHandle>> third = engine_->Submit(Prompt(4, 5));
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("2 requests are waiting"));
  running->Cancel();
  gate_.Allow(1 << 20);
  EXPECT_TRUE(Drain(*first).status.ok());
  EXPECT_TRUE(Drain(*second).status.ok());
  EXPECT_TRUE(Drain(*Submit(Prompt(4, 5))).status.ok());
}

TEST_F(RequestLifeTest, TheQueuesTokensAreBounded) {
  EngineOptions options = GatedOptions();
  options.max_waiting_tokens = 100;
  Start(options);
  std::unique_ptr<RequestHandle> running = Submit(Prompt(4, 500));
  gate_.Allow(1);
  EXPECT_EQ(running->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> first = Submit(Prompt(60, 5));
  EXPECT_EQ(engine_->Submit(Prompt(60, 5)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(engine_->Submit(Prompt(40, 5)).ok());
}

// A request brings room for all it may generate: 400 tokens with 20 alternatives each are over 64 KB.
TEST_F(RequestLifeTest, TheQueuesMemoryIsBounded) {
  EngineOptions options = GatedOptions();
  options.max_waiting_bytes = 100'000;
  Start(options);
  std::unique_ptr<RequestHandle> running = Submit(Prompt(4, 500));
  gate_.Allow(1);
  EXPECT_EQ(running->Next().kind, Event::Kind::kToken);
  EXPECT_EQ(engine_->Stats().waiting_bytes, 0u);
  Request large = Prompt(4, 400);
  large.top_logprobs = 20;
  std::unique_ptr<RequestHandle> first = Submit(large);
  EXPECT_GE(engine_->Stats().waiting_bytes, 400 * 20 * sizeof(TokenLogprob));
  const absl::Status refused = engine_->Submit(large).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("at most 100000 bytes (--max-waiting-mb)"));
  EXPECT_TRUE(engine_->Submit(Prompt(4, 400)).ok()) << "the same without alternatives has room";
  first->Cancel();
  gate_.Allow(1);
  EXPECT_TRUE(absl::IsCancelled(Drain(*first).status));
  EXPECT_TRUE(engine_->Submit(large).ok());
}

TEST_F(RequestLifeTest, RefusesWhatCannotBeServedAndSaysWhy) {
  EngineOptions options = Options();
  options.kv_cache_bytes = 3 * 3 * 32 * 2 * 2 * 16;  // three blocks: 96 tokens
  Start(options);
  const auto refused = [&](Request r, absl::StatusCode code, const std::string& message) {
    const absl::Status status = engine_->Submit(std::move(r)).status();
    EXPECT_EQ(status.code(), code) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  EXPECT_TRUE(Drain(*Submit(Prompt(5, 5))).status.ok());  // the control
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  refused(Prompt(0, 5), kInvalid, "no tokens");
  refused(Prompt(5, 0), kInvalid, "max_tokens");
  refused(Prompt(500, 13), kInvalid, "context is 512 tokens, but the request needs 513: 500");
  refused(Prompt(90, 20), absl::StatusCode::kResourceExhausted, "110 tokens of KV cache, the server has 96");
  Request r = Prompt(5, 5);
  r.prompt[2] = 97;
  refused(r, kInvalid, "token id 97 is outside the vocabulary of 97");
  r = Prompt(5, 5);
  r.sampling.temperature = -1;
  refused(r, kInvalid, "temperature");
  r = Prompt(5, 5);
  r.sampling.top_p = 0;
  refused(r, kInvalid, "top_p");
  r = Prompt(5, 5);
  r.sampling.top_k = -1;
  refused(r, kInvalid, "top_k");
  r = Prompt(5, 5);
  r.sampling.logit_bias = {{97, 1.0f}};
  refused(r, kInvalid, "logit_bias");
  r = Prompt(5, 5);
  r.top_logprobs = 21;
  refused(r, kInvalid, "logprobs");
  r = Prompt(5, 5, 3);
  refused(r, kInvalid, "domain index 3 of 3");
  engine_->StartDraining();
  refused(Prompt(5, 5), absl::StatusCode::kUnavailable, "shutting down");
}

TEST_F(RequestLifeTest, NotifyIsCalledForEventsBeforeAndAfterItIsSet) {
  Start(Options());
  std::unique_ptr<RequestHandle> handle = Submit(Prompt(4, 50));
  Await([&] { return engine_->Stats().domains[0].generated_tokens > 3; });
  std::atomic<int> calls{0};
  handle->SetNotify([&] { ++calls; });
  Await([&] { return calls > 0; });
  int events = 0;
  for (bool ended = false; !ended;) {
    const int seen = calls;
    while (std::optional<Event> e = handle->TryNext()) {
      ++events;
      ended = e->kind == Event::Kind::kFinished;
    }
    if (!ended) Await([&] { return calls > seen; });
  }
  EXPECT_EQ(events, 51);
}

TEST_F(RequestLifeTest, NotifyIsCalledForARequestThatHasEndedBefore) {
  Start(Options());
  std::unique_ptr<RequestHandle> handle = Submit(Prompt(4, 5));
  Await([&] { return engine_->Idle(); });
  std::atomic<bool> called{false};
  handle->SetNotify([&] { called = true; });
  Await([&] { return called.load(); });
  EXPECT_TRUE(Drain(*handle).status.ok());
}

TEST_F(RequestLifeTest, DestructionEndsWhatIsRunningAndWhatWaits) {
  EngineOptions options = GatedOptions();
  options.max_waiting_requests = 100;
  Start(options);
  // One runs at a time: tens of thousands of steps are left when the engine goes.
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (int i = 0; i < 100; ++i) handles.push_back(Submit(Prompt(4, 500)));
  gate_.Allow(1);
  EXPECT_EQ(handles[0]->Next().kind, Event::Kind::kToken);
  gate_.Allow(1 << 30);
  engine_.reset();
  for (const auto& handle : handles) {
    const Result r = Drain(*handle);
    EXPECT_TRUE(r.status.ok() || absl::IsUnavailable(r.status)) << r.status;
    if (handle == handles.back()) {
      EXPECT_TRUE(absl::IsUnavailable(r.status)) << r.status;
    }
  }
}

}  // namespace
}  // namespace scion
