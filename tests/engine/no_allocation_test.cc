// No allocation on engine and compute threads over steady steps: every operator new of the process is counted while
// requests of all domains decode, and while prompts take over blocks from the prefix cache and evict others; nobody
// submits meanwhile.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

#include "engine/engine.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "tests/support/tiny_model.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void* CountedAllocation(std::size_t size, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1);
  void* p = alignment <= alignof(std::max_align_t)
                ? std::malloc(size)
                : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t size) { return CountedAllocation(size, 1); }
void* operator new[](std::size_t size) { return CountedAllocation(size, 1); }
void* operator new(std::size_t size, std::align_val_t a) {
  return CountedAllocation(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return CountedAllocation(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }

namespace scion {
namespace {

TEST(SteadySteps, DoNotAllocate) {
  test::TinyModelOptions model;
  model.domains = {{"alpha", 3}, {"beta", 2}, {"gamma", 4}};
  model.num_experts_per_tok = 2;
  model.max_position_embeddings = 2048;
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(model), directory.path());
  std::atomic<int> steps{0};
  EngineOptions options;
  options.model_directory = directory.path();
  options.num_threads = 3;
  options.step_observer = [&](const StepTrace&) { steps.fetch_add(1); };
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (int i = 0; i < 12; ++i) {
    Request r;
    r.prompt = {2, 3, 4, static_cast<int32_t>(i + 5)};
    r.domain = i % 3;
    r.max_new_tokens = 2000;
    r.ignore_eos = true;
    if (i % 2 == 1) {
      r.sampling = {
          .temperature = 1, .top_k = i % 4 == 1 ? 10 : 0, .top_p = 0.9f, .seed = 3, .logit_bias = {{7, 1.0f}}};
      r.top_logprobs = 5;
    }
    absl::StatusOr<std::unique_ptr<RequestHandle>> handle = (*engine)->Submit(std::move(r));
    ASSERT_TRUE(handle.ok()) << handle.status();
    handles.push_back(*std::move(handle));
    handles.back()->SetNotify([] {});
  }
  while (steps < 40) std::this_thread::yield();
  counting = true;
  const int begin = steps;
  while (steps < begin + 64) std::this_thread::yield();
  counting = false;
  EXPECT_LT(steps, 1900) << "the requests ended before the count did";
  EXPECT_EQ(allocations, 0);

  // The counter counts: submitting a request allocates.
  counting = true;
  Request r;
  r.prompt = {2};
  r.max_new_tokens = 1;
  EXPECT_TRUE((*engine)->Submit(std::move(r)).ok());
  counting = false;
  EXPECT_GT(allocations, 0);
}

TEST(StepsOfPrompts, DoNotAllocate) {
  test::TinyModelOptions options;
  options.domains = {{"alpha", 3}, {"beta", 2}};
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(options), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  constexpr int kRows = 40;
  const std::vector<int32_t> blocks = {0, 1};
  const std::vector<int32_t> ids(kRows, 7);
  const StepChunk chunk{.domain = 1, .num_rows = kRows, .blocks = blocks};
  for (int threads : {1, 8}) {
    ThreadPool pool(threads);
    absl::StatusOr<std::unique_ptr<Model>> model =
        Model::Load(**checkpoint, {.kv_type = DefaultKvType(**checkpoint, WeightMode::kAsIs)}, pool);
    ASSERT_TRUE(model.ok()) << model.status();
    absl::StatusOr<KvCache> cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 2);
    ASSERT_TRUE(cache.ok()) << cache.status();
    for (const std::vector<int32_t>& wanted : {std::vector<int32_t>{}, {kRows - 1}, {0, 3, 6, 9, 39}}) {
      allocations = 0;
      counting = true;
      (*model)->Forward({.token_ids = ids, .chunks = {&chunk, 1}, .logit_rows = wanted}, *cache);
      counting = false;
      EXPECT_EQ(allocations, 0) << threads << " threads, " << wanted.size() << " rows wanted";
    }
  }
}

TEST(StepsWithPrefixHits, DoNotAllocate) {
  test::TinyModelOptions model;
  model.domains = {{"alpha", 3}, {"beta", 2}};
  model.max_position_embeddings = 512;
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(model), directory.path());
  std::atomic<int> allowed_steps{0};
  std::atomic<int> steps{0};
  EngineOptions options;
  options.model_directory = directory.path();
  options.num_threads = 2;
  options.max_running_requests = 2;
  options.max_step_tokens = 64;
  options.kv_cache_bytes = 30 * 3 * 32 * 2 * 2 * 16;  // 30 blocks
  options.itl_target = absl::Microseconds(1);         // so that prompts pass some layers a step
  std::atomic<int> layered_steps{0};
  options.step_observer = [&](const StepTrace& trace) {
    while (steps >= allowed_steps) std::this_thread::yield();
    steps.fetch_add(1);
    if (trace.prefill_rows > 0 && trace.prefill_layers < model.num_layers) layered_steps.fetch_add(1);
  };
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (int i = 0; i < 40; ++i) {
    Request r;
    r.prompt.assign(200, static_cast<int32_t>(3 + i / 8));  // eight that begin alike, then others
    r.prompt.resize(static_cast<size_t>(200 + i), 2);
    r.domain = i % 2;
    r.max_new_tokens = i % 2 == 0 ? 20 : 27;
    r.ignore_eos = true;
    absl::StatusOr<std::unique_ptr<RequestHandle>> handle = (*engine)->Submit(std::move(r));
    ASSERT_TRUE(handle.ok()) << handle.status();
    handles.push_back(*std::move(handle));
  }
  const auto run_until = [&](int step) {
    allowed_steps = step;
    while (steps < step) std::this_thread::yield();
  };
  run_until(60);
  const EngineStats before = (*engine)->Stats();
  allocations = 0;
  counting = true;
  run_until(260);
  counting = false;
  const EngineStats after = (*engine)->Stats();
  allowed_steps = 1 << 30;
  EXPECT_LT(after.requests_finished, 36u) << "the requests ended before the count did";
  EXPECT_GT(after.prefix_hit_tokens, before.prefix_hit_tokens);
  EXPECT_GT(after.prefix_evictions, before.prefix_evictions);
  EXPECT_EQ(allocations, 0);
  EXPECT_GT(layered_steps, 20);
}

}  // namespace
}  // namespace scion
