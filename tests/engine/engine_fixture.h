// An engine on a tiny model of three domains, and what tests ask of it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "tests/support/tiny_model.h"

namespace scion {

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    test::TinyModelOptions o;
    o.domains = {{"alpha", 3}, {"beta", 2}, {"gamma", 4}};
    o.max_position_embeddings = 512;
    test::WriteTinyModel(test::MakeTinyModel(o), directory_.path());
  }

  EngineOptions Options() const {
    EngineOptions o;
    o.model_directory = directory_.path();
    o.num_threads = 2;
    return o;
  }
  void Start(EngineOptions options) {
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(std::move(options));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  static Request Prompt(int tokens, int max_new_tokens, int domain = 0) {
    Request r;
    for (int i = 0; i < tokens; ++i) r.prompt.push_back(2 + (i * 7 + domain) % 90);
    r.domain = domain;
    r.max_new_tokens = max_new_tokens;
    r.ignore_eos = true;
    return r;
  }
  std::unique_ptr<RequestHandle> Submit(Request r) {
    absl::StatusOr<std::unique_ptr<RequestHandle>> handle = engine_->Submit(std::move(r));
    EXPECT_TRUE(handle.ok()) << handle.status();
    return handle.ok() ? *std::move(handle) : nullptr;
  }
  struct Result {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    std::vector<std::vector<TokenLogprob>> top;
    FinishReason reason;
    absl::Status status;
  };
  static Result Drain(RequestHandle& handle) {
    Result r;
    for (;;) {
      const Event e = handle.Next();
      if (e.kind == Event::Kind::kFinished) {
        r.reason = e.finish_reason;
        r.status = e.status;
        EXPECT_FALSE(handle.TryNext().has_value()) << "an event after the terminal one";
        return r;
      }
      r.tokens.push_back(e.token_id);
      if (e.logprob) r.logprobs.push_back(*e.logprob);
      r.top.emplace_back(e.top.begin(), e.top.end());
    }
  }
  // Until a condition that must come true does; the test's own time limit is the bound.
  template <typename Condition>
  static void Await(Condition condition) {
    while (!condition()) std::this_thread::yield();
  }

  void TearDown() override { gate_.Allow(1 << 30); }  // the engine is destroyed after this

  // Lets the engine make so many steps and no more: what must still be running is running, however fast the machine.
  class StepGate {
   public:
    void Allow(int steps) {
      std::lock_guard lock(mutex_);
      allowed_ += steps;
      changed_.notify_all();
    }
    void Pass() {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return allowed_ > 0; });
      --allowed_;
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t allowed_ = 0;
  };
  // One request at a time, step by step.
  EngineOptions GatedOptions() {
    EngineOptions o = Options();
    o.max_running_requests = 1;
    o.step_observer = [this](const StepTrace&) { gate_.Pass(); };
    return o;
  }

  test::TempDir directory_;
  StepGate gate_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace scion
