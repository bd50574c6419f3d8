#include "engine/base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace scion {
namespace {

// Some hundred microseconds: longer than the gap between two loops of one step, gates and samplers included (to wake a
// sleeper takes as long), shorter than a tick of the system.
constexpr int kSpins = 16000;

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  workers_.reserve(static_cast<size_t>(num_threads > 1 ? num_threads - 1 : 0));
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::DrainTasks(int thread) {
  const auto claimable = [](uint64_t t) { return static_cast<uint32_t>(t) < static_cast<uint32_t>(t >> 32); };
  while (claimable(tickets_.load(std::memory_order_relaxed))) {
    const uint64_t ticket = tickets_.fetch_add(1, std::memory_order_acq_rel);
    if (!claimable(ticket)) return;
    fn_(context_, static_cast<int>(static_cast<uint32_t>(ticket)), thread);
    const int num_tasks = static_cast<int>(ticket >> 32);
    if (finished_tasks_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks) finished_tasks_.notify_one();
  }
}

void ThreadPool::Run(int num_tasks, TaskFn fn, void* context) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int task = 0; task < num_tasks; ++task) fn(context, task, 0);
    return;
  }
  fn_ = fn;
  context_ = context;
  finished_tasks_.store(0, std::memory_order_relaxed);
  tickets_.store(static_cast<uint64_t>(num_tasks) << 32, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  DrainTasks(0);
  for (int spin = 0;; ++spin) {
    const int finished = finished_tasks_.load(std::memory_order_acquire);
    if (finished == num_tasks) return;
    if (spin < kSpins) {
      Pause();
    } else {
      finished_tasks_.wait(finished, std::memory_order_acquire);
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) Pause();
    generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    DrainTasks(thread);
  }
}

}  // namespace scion
