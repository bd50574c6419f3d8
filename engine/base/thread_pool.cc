#include "engine/base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace scion {
namespace {

// About 20 to 50 microseconds: longer than the gap between two loops of one step, shorter than a scheduler tick.
constexpr int kSpins = 2000;

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
  const int n = num_tasks_;
  for (int task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < n;) fn_(context_, task, thread);
}

void ThreadPool::Run(int num_tasks, TaskFn fn, void* context) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int task = 0; task < num_tasks; ++task) fn(context, task, 0);
    return;
  }
  fn_ = fn;
  context_ = context;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  running_workers_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  DrainTasks(0);
  for (int spin = 0;; ++spin) {
    const int running = running_workers_.load(std::memory_order_acquire);
    if (running == 0) return;
    if (spin < kSpins) {
      Pause();
    } else {
      running_workers_.wait(running, std::memory_order_acquire);
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
    if (running_workers_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_workers_.notify_one();
  }
}

}  // namespace scion
