// No allocation on engine and compute threads over 64 steady steps: every operator new of the process is counted while
// requests of all domains decode and nobody submits.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

#include "engine/engine.h"
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

}  // namespace
}  // namespace scion
