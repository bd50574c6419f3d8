// The facade: what a caller may rely on, whatever the scheduling.
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "tests/engine/engine_fixture.h"

namespace scion {
namespace {

TEST_F(EngineTest, GivesTheTokensOfTheModelRunAlone) {
  Start(Options());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  ThreadPool pool(1);
  std::unique_ptr<Model> model = *Model::Load(**checkpoint, {.tier = *engine_->options().tier}, pool);
  KvCache cache = *KvCache::Create(model->KvPlanes(), kernels::kKvBlockTokens, 16);
  for (int domain = 0; domain < 3; ++domain) {
    const Request request = Prompt(9, 12, domain);
    std::vector<int32_t> ids = request.prompt;
    for (int i = 0; i < 12; ++i) {
      int32_t next = 0;
      ASSERT_TRUE(RunPrompt(*model, cache, domain, ids, [&](int, std::span<const float> logits) {
                    next = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
                  }).ok());
      ids.push_back(next);
    }
    const Result r = Drain(*Submit(request));
    EXPECT_EQ(r.tokens, std::vector<int32_t>(ids.begin() + 9, ids.end()));
    EXPECT_EQ(r.reason, FinishReason::kLength);
    EXPECT_TRUE(r.status.ok());
  }
}

TEST_F(EngineTest, ScoresEveryPromptTokenButTheFirst) {
  Start(Options());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory_.path());
  ThreadPool pool(1);
  std::unique_ptr<Model> model = *Model::Load(**checkpoint, {.tier = *engine_->options().tier}, pool);
  KvCache cache = *KvCache::Create(model->KvPlanes(), kernels::kKvBlockTokens, 16);
  Request request = Prompt(300, 0, 1);
  request.score_prompt = true;
  std::vector<double> expected;
  ASSERT_TRUE(RunPrompt(*model, cache, 1, request.prompt, [&](int position, std::span<const float> logits) {
                if (position + 1 == 300) return;
                double sum = 0;
                for (float l : logits) sum += std::exp(static_cast<double>(l));
                expected.push_back(logits[static_cast<size_t>(request.prompt[static_cast<size_t>(position) + 1])] -
                                   std::log(sum));
              }).ok());
  const Result r = Drain(*Submit(request));
  EXPECT_EQ(r.reason, FinishReason::kScored);
  EXPECT_EQ(r.tokens, std::vector<int32_t>(request.prompt.begin() + 1, request.prompt.end()));
  ASSERT_EQ(r.logprobs.size(), 299u);
  for (size_t i = 0; i < 299; ++i) EXPECT_NEAR(r.logprobs[i], expected[i], 1e-4) << i;
}

TEST_F(EngineTest, ARequestThatGivesWayInMidTextGivesTheTextThatItGivesAlone) {
  EngineOptions options = Options();
  options.kv_cache_bytes = 6 * 3 * 32 * 2 * 2 * 16;  // six blocks of 32 tokens
  Start(options);
  std::vector<Request> requests;
  for (int i = 0; i < 2; ++i) {
    requests.push_back(Prompt(20, 100, i));  // four blocks at the end
    requests.back().sampling = {.temperature = 1.0f, .top_k = 0, .top_p = 1, .seed = 77, .logit_bias = {}};
  }
  std::vector<Result> alone;
  for (const Request& request : requests) alone.push_back(Drain(*Submit(request)));
  ASSERT_EQ(engine_->Stats().preemptions, 0u);
  // Both at once do not fit; whether the two meet is the scheduler's affair, so they are sent until they did.
  while (engine_->Stats().preemptions == 0) {
    std::unique_ptr<RequestHandle> first = Submit(requests[0]);
    std::unique_ptr<RequestHandle> second = Submit(requests[1]);
    EXPECT_EQ(Drain(*first).tokens, alone[0].tokens);
    EXPECT_EQ(Drain(*second).tokens, alone[1].tokens);
  }
}

// A decode that needs one block more takes those of the scoring request, which has given some of its scores by then.
TEST_F(EngineTest, ScoresComeOnceThoughTheRequestGivesWayMidway) {
  EngineOptions options = Options();
  options.kv_cache_bytes = 6 * 3 * 32 * 2 * 2 * 16;  // six blocks of 32 tokens
  options.max_step_tokens = 9;
  options.max_running_requests = 2;
  options.step_observer = [this](const StepTrace&) { gate_.Pass(); };
  Start(options);
  Request score = Prompt(150, 0, 1);  // five blocks
  score.score_prompt = true;
  std::unique_ptr<RequestHandle> decoding = Submit(Prompt(20, 60));  // one block, then three
  gate_.Allow(3);
  EXPECT_EQ(decoding->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> scoring = Submit(score);
  gate_.Allow(1 << 20);
  const Result r = Drain(*scoring);
  EXPECT_TRUE(Drain(*decoding).status.ok());
  EXPECT_GT(engine_->Stats().preemptions, 0u);
  EXPECT_EQ(r.reason, FinishReason::kScored);
  EXPECT_EQ(r.tokens, std::vector<int32_t>(score.prompt.begin() + 1, score.prompt.end()));
}

// As above, but of a prompt that no one else has: what it finds of its own when it comes back was not cached for it.
TEST_F(EngineTest, ARequestThatGaveWayDoesNotCountItsOwnBlocksAsCached) {
  EngineOptions options = Options();
  options.kv_cache_bytes = 6 * 3 * 32 * 2 * 2 * 16;  // six blocks of 32 tokens
  options.max_step_tokens = 5;
  options.max_running_requests = 2;
  options.step_observer = [this](const StepTrace&) { gate_.Pass(); };
  Start(options);
  std::unique_ptr<RequestHandle> first = Submit(Prompt(20, 60));  // one block, then three
  gate_.Allow(5);
  EXPECT_EQ(first->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> second = Submit(Prompt(100, 28, 1));  // four blocks
  gate_.Allow(1 << 20);
  EXPECT_EQ(Drain(*second).tokens.size(), 28u);
  EXPECT_EQ(Drain(*first).tokens.size(), 59u);
  EXPECT_EQ(engine_->Stats().preemptions, 1u);
  EXPECT_EQ(engine_->Stats().prefix_hit_tokens, 96u);
  EXPECT_EQ(second->cached_prompt_tokens(), 0);
}

// The same requests, sampled, with and without: sharing the beginning with one that still runs, with one that has
// ended, with what was generated, under a cache so small that blocks are evicted and sequences give way.
TEST_F(EngineTest, ThePrefixCacheChangesNoText) {
  std::vector<Request> requests;
  for (int i = 0; i < 24; ++i) {
    Request r = Prompt(40 + i * 5 % 61, 20 + i % 30, i % 3);
    if (i % 4 == 3) r.prompt[33] = 50;  // different after the first block
    r.sampling = {.temperature = 1.0f, .top_k = 0, .top_p = 1, .seed = 77, .logit_bias = {}};
    r.top_logprobs = 2;
    if (i % 5 == 4) r.score_prompt = true;
    requests.push_back(r);
  }
  std::vector<std::vector<Result>> all;
  for (bool prefix_cache : {false, true}) {
    for (int blocks : {200, 12}) {
      EngineOptions options = Options();
      options.prefix_cache = prefix_cache;
      options.prefill_chunk_tokens = 24;
      options.kv_cache_bytes = static_cast<uint64_t>(blocks) * 3 * 32 * 2 * 2 * 16;
      Start(options);
      std::vector<Result> results;
      for (int round = 0; round < 2; ++round) {
        std::vector<std::unique_ptr<RequestHandle>> handles;
        for (const Request& r : requests) handles.push_back(Submit(r));
        for (const auto& handle : handles) results.push_back(Drain(*handle));
      }
      all.push_back(std::move(results));
      const EngineStats stats = engine_->Stats();
      EXPECT_EQ(stats.kv_blocks_in_use, 0);
      EXPECT_EQ(stats.prefix_hit_tokens > 1000, prefix_cache);
      EXPECT_EQ(stats.prefix_evictions > 10, prefix_cache && blocks == 12);
      EXPECT_EQ(stats.kv_blocks_cached > 5, prefix_cache);
    }
  }
  for (const std::vector<Result>& results : all) {
    for (size_t i = 0; i < results.size(); ++i) {
      const Result& want = all[0][i % requests.size()];
      EXPECT_TRUE(results[i].status.ok());
      EXPECT_EQ(results[i].tokens, want.tokens) << i;
      ASSERT_EQ(results[i].logprobs.size(), want.logprobs.size());
      EXPECT_EQ(std::memcmp(results[i].logprobs.data(), want.logprobs.data(), want.logprobs.size() * sizeof(float)), 0);
    }
  }
}

TEST_F(EngineTest, SaysHowMuchOfAPromptWasCached) {
  Start(Options());
  const auto cached = [&](const Request& r) {
    std::unique_ptr<RequestHandle> handle = Submit(r);
    EXPECT_TRUE(Drain(*handle).status.ok());
    return handle->cached_prompt_tokens();
  };
  EXPECT_EQ(cached(Prompt(100, 3)), 0);
  EXPECT_EQ(cached(Prompt(100, 3)), 96);
  EXPECT_EQ(cached(Prompt(96, 3)), 64) << "the last token is always computed";
  Request other_domain = Prompt(100, 3);
  other_domain.domain = 1;
  EXPECT_EQ(cached(other_domain), 0);
  Request other_tenant = Prompt(100, 3);
  other_tenant.tenant = 1;
  EXPECT_EQ(cached(other_tenant), 0);
  Request scored = Prompt(100, 3);
  scored.score_prompt = true;
  EXPECT_EQ(cached(scored), 0) << "every position's logits are wanted";
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.prefix_hit_tokens, 160u);
  EXPECT_EQ(stats.prefix_miss_tokens, 100u + 4 + 32 + 100 + 100 + 100);
  EXPECT_EQ(stats.domains[0].prompt_tokens + stats.domains[1].prompt_tokens, stats.prefix_miss_tokens);
}

// The second takes over the first's blocks; then the first leaves in the middle of its prompt, and the second goes on.
TEST_F(EngineTest, ARequestThatLeavesInItsPrefillTakesNothingFromThoseThatShareItsBlocks) {
  std::atomic<int> rows{0};
  EngineOptions options = Options();
  options.max_step_tokens = 64;
  options.max_running_requests = 8;
  options.prefill_chunk_tokens = 32;
  options.step_observer = [&](const StepTrace& t) {
    rows += t.rows;
    gate_.Pass();
  };
  Start(options);
  const Request request = Prompt(400, 20);
  std::unique_ptr<RequestHandle> first = Submit(request);
  gate_.Allow(2);
  // Two steps have been, the third waits at the gate: the second request comes into the fourth.
  Await([&] { return rows == 192; });
  std::unique_ptr<RequestHandle> second = Submit(request);
  gate_.Allow(1);
  Await([&] { return engine_->Stats().prefix_hit_tokens == 192; });
  first->Cancel();
  gate_.Allow(1 << 20);
  EXPECT_TRUE(absl::IsCancelled(Drain(*first).status));
  const Result got = Drain(*second);
  EXPECT_EQ(first->cached_prompt_tokens(), 0);
  EXPECT_GE(second->cached_prompt_tokens(), 192);
  EXPECT_EQ(got.tokens.size(), 20u);
  Await([&] { return engine_->Stats().kv_blocks_in_use == 0; });

  options.prefix_cache = false;
  engine_.reset();
  Start(options);
  EXPECT_EQ(got.tokens, Drain(*Submit(request)).tokens);
}

// No machine computes a row in a microsecond: 1600 prompt tokens get the least there is, beside the one that decodes.
// Answers are the same, and so is what experts have computed.
TEST_F(EngineTest, PromptsDoNotPushAStepBeyondTheTargetForTheInterTokenLatency) {
  std::vector<std::vector<int32_t>> answers;
  std::vector<std::vector<uint64_t>> expert_tokens;  // of the first sparse layer, by target and domain
  for (absl::Duration target : {absl::Microseconds(1), absl::InfiniteDuration()}) {
    StepGate gate;
    std::mutex mutex;
    std::vector<StepTrace> steps;
    EngineOptions options = Options();
    options.max_step_tokens = 500;
    options.prefix_cache = false;
    options.itl_target = target;
    options.step_observer = [&](const StepTrace& t) {
      gate.Pass();
      std::lock_guard lock(mutex);
      steps.push_back(t);
    };
    Start(options);
    std::unique_ptr<RequestHandle> decoding = Submit(Prompt(4, 200));
    gate.Allow(2);
    EXPECT_EQ(decoding->Next().kind, Event::Kind::kToken);
    std::vector<std::unique_ptr<RequestHandle>> prompts;
    for (int i = 0; i < 4; ++i) prompts.push_back(Submit(Prompt(400, 5, i % 3)));
    gate.Allow(1 << 20);
    EXPECT_TRUE(Drain(*decoding).status.ok());
    for (const auto& handle : prompts) {
      const Result r = Drain(*handle);
      EXPECT_TRUE(r.status.ok());
      answers.push_back(r.tokens);
    }
    for (const DomainStats& domain : engine_->Stats().domains) expert_tokens.push_back(domain.expert_tokens.at(0));
    engine_.reset();
    const auto is_mixed = [](const StepTrace& t) { return t.decode_rows > 0 && t.prefill_rows > 0; };
    const auto mixed_steps = std::count_if(steps.begin(), steps.end(), is_mixed);
    const int num_layers = test::TinyModelOptions().num_layers;
    const auto layered_steps = std::count_if(steps.begin(), steps.end(), [&](const StepTrace& t) {
      return t.prefill_rows > 0 && t.prefill_layers < num_layers;
    });
    if (target == absl::InfiniteDuration()) {
      EXPECT_LE(mixed_steps, 8);
      EXPECT_EQ(layered_steps, 0);
    } else {
      EXPECT_GT(mixed_steps, 12);
      EXPECT_GT(layered_steps, 12);
      // The last layer, which costs prompts little, comes with the one before it.
      EXPECT_TRUE(std::any_of(steps.begin(), steps.end(), [](const StepTrace& t) { return t.prefill_layers == 2; }));
    }
  }
  ASSERT_EQ(answers.size(), 8u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(answers[i], answers[i + 4]);
  ASSERT_EQ(expert_tokens.size(), 6u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(expert_tokens[i], expert_tokens[i + 3]);
}

// Scored layer by layer beside one that decodes, and alone.
TEST_F(EngineTest, ScoresAreTheSameLayerByLayer) {
  std::vector<Result> results;
  for (bool in_company : {false, true}) {
    StepGate gate;
    std::atomic<int> layered_steps{0};
    EngineOptions options = Options();
    options.prefix_cache = false;
    options.itl_target = in_company ? absl::Microseconds(1) : absl::InfiniteDuration();
    options.step_observer = [&](const StepTrace& t) {
      gate.Pass();
      if (t.prefill_rows > 0 && t.prefill_layers < test::TinyModelOptions().num_layers) layered_steps.fetch_add(1);
    };
    Start(options);
    std::unique_ptr<RequestHandle> decoding;
    if (in_company) {
      decoding = Submit(Prompt(4, 300));
      gate.Allow(2);
      EXPECT_EQ(decoding->Next().kind, Event::Kind::kToken);
    }
    Request request = Prompt(150, 0, 1);
    request.score_prompt = true;
    std::unique_ptr<RequestHandle> scored = Submit(request);
    gate.Allow(1 << 20);
    results.push_back(Drain(*scored));
    EXPECT_EQ(scored->cached_prompt_tokens(), 0);
    EXPECT_EQ(engine_->Stats().domains[1].prompt_tokens, 150u);
    if (in_company) {
      EXPECT_TRUE(Drain(*decoding).status.ok());
    }
    EXPECT_EQ(layered_steps > 10, in_company);
    engine_.reset();
  }
  ASSERT_EQ(results[0].logprobs.size(), 149u);
  ASSERT_EQ(results[1].logprobs.size(), 149u);
  EXPECT_EQ(std::memcmp(results[0].logprobs.data(), results[1].logprobs.data(), 149 * sizeof(float)), 0);
}

TEST_F(EngineTest, AOneTokenScoreEndsAtOnceWithNoScores) {
  Start(Options());
  Request request = Prompt(1, 0);
  request.score_prompt = true;
  const Result r = Drain(*Submit(request));
  EXPECT_EQ(r.reason, FinishReason::kScored);
  EXPECT_TRUE(r.tokens.empty());
}

TEST_F(EngineTest, StopsAtAStopTokenWithoutEmittingIt) {
  Start(Options());
  const Result all = Drain(*Submit(Prompt(9, 12)));
  Request request = Prompt(9, 12);
  request.stop_token_ids = {all.tokens[5]};
  const Result r = Drain(*Submit(request));
  const size_t first =
      static_cast<size_t>(std::find(all.tokens.begin(), all.tokens.end(), all.tokens[5]) - all.tokens.begin());
  EXPECT_EQ(r.tokens, std::vector<int32_t>(all.tokens.begin(), all.tokens.begin() + static_cast<ptrdiff_t>(first)));
  EXPECT_EQ(r.reason, FinishReason::kStop);
}

TEST_F(EngineTest, EosEndsTheTextUnlessItIsToBeIgnored) {
  Start(Options());
  const int32_t eos = engine_->spec().eos_token_ids.at(0);
  Request request = Prompt(5, 6);
  request.sampling.logit_bias = {{eos, 1000.0f}};
  EXPECT_EQ(Drain(*Submit(request)).tokens, std::vector<int32_t>(6, eos));
  request.ignore_eos = false;
  const Result r = Drain(*Submit(request));
  EXPECT_TRUE(r.tokens.empty());
  EXPECT_EQ(r.reason, FinishReason::kStop);
}

TEST_F(EngineTest, SameSeedSameTextInAnyCompany) {
  Start(Options());
  Request request = Prompt(9, 40, 2);
  request.sampling = {.temperature = 1.0f, .top_k = 20, .top_p = 0.95f, .seed = 1234, .logit_bias = {}};
  request.top_logprobs = 3;
  const Result alone = Drain(*Submit(request));
  std::vector<std::unique_ptr<RequestHandle>> company;
  for (int i = 0; i < 30; ++i) company.push_back(Submit(Prompt(1 + i * 5, 20, i % 3)));
  const Result together = Drain(*Submit(request));
  EXPECT_EQ(alone.tokens, together.tokens);
  ASSERT_EQ(alone.logprobs.size(), 40u);
  EXPECT_EQ(std::memcmp(alone.logprobs.data(), together.logprobs.data(), 40 * sizeof(float)), 0);
  for (size_t i = 0; i < 40; ++i) {
    ASSERT_EQ(together.top[i].size(), 3u);
    EXPECT_GE(together.top[i][0].logprob, together.top[i][1].logprob);
    EXPECT_EQ(alone.top[i][2].token_id, together.top[i][2].token_id);
  }
  request.sampling.seed = 1235;
  EXPECT_NE(Drain(*Submit(request)).tokens, alone.tokens);
}

TEST_F(EngineTest, ANewcomerGetsItsFirstTokenBeforeAnyOfEightDecodesEnds) {
  std::mutex mutex;
  std::vector<StepTrace> steps;
  EngineOptions options = Options();
  options.step_observer = [&](const StepTrace& t) {
    gate_.Pass();
    std::lock_guard lock(mutex);
    steps.push_back(t);
  };
  Start(options);
  std::vector<std::unique_ptr<RequestHandle>> decoding;
  for (int i = 0; i < 8; ++i) decoding.push_back(Submit(Prompt(4, 400, i % 3)));
  // The eight may enter in as many as eight steps; the newcomer's 200 tokens need one step beside them.
  gate_.Allow(16);
  for (auto& handle : decoding) EXPECT_EQ(handle->Next().kind, Event::Kind::kToken);
  std::unique_ptr<RequestHandle> newcomer = Submit(Prompt(200, 5));
  gate_.Allow(4);
  EXPECT_EQ(newcomer->Next().kind, Event::Kind::kToken);
  for (auto& handle : decoding) {
    while (std::optional<Event> e = handle->TryNext()) EXPECT_EQ(e->kind, Event::Kind::kToken) << "ended too early";
  }
  newcomer.reset();
  gate_.Allow(1 << 20);
  for (auto& handle : decoding) EXPECT_TRUE(Drain(*handle).status.ok());
  std::lock_guard lock(mutex);
  EXPECT_TRUE(std::any_of(steps.begin(), steps.end(), [](const StepTrace& t) {
    return t.decode_rows >= 8 && t.prefill_rows > 0 && t.domains == 3;
  }));
}

TEST_F(EngineTest, CountsTheTokensThatEachExpertSaw) {
  Start(Options());
  const Result r = Drain(*Submit(Prompt(20, 10, 1)));
  EXPECT_EQ(r.tokens.size(), 10u);
  const EngineStats stats = engine_->Stats();
  ASSERT_EQ(stats.domains.size(), 3u);
  EXPECT_EQ(stats.domains[1].prompt_tokens, 20u);
  EXPECT_EQ(stats.domains[1].generated_tokens, 10u);
  for (size_t d = 0; d < 3; ++d) {
    ASSERT_EQ(stats.domains[d].expert_tokens.size(), 2u);
    for (size_t l = 0; l < 2; ++l) {
      uint64_t sum = 0;
      for (uint64_t n : stats.domains[d].expert_tokens[l]) sum += n;
      // The last generated token is never computed. In the last layer, nor are rows whose logits nobody wants.
      EXPECT_EQ(sum, d != 1 ? 0u : l == 0 ? 29u : 10u);
    }
  }
}

}  // namespace
}  // namespace scion
