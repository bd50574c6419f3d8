// A fixed set of compute threads that run one parallel loop at a time.
//
// The caller takes part in the loop, so a pool of n threads starts n - 1. Tasks are handed out by an atomic counter:
// which thread runs a task is not determined, so a task must be the sole writer of its outputs and must not reduce
// across tasks. A loop ends when its tasks are done: a worker that the system has not woken yet holds nobody up. No
// call allocates. Between loops a worker spins for a short while (the next loop of a step is
// microseconds away), then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace scion {

class ThreadPool {
 public:
  // num_threads >= 1, the caller of ParallelFor included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs fn(task, thread) for every task in [0, num_tasks), thread in [0, num_threads()), and returns when all are
  // done. Only one thread may call it at a time. fn must not throw and must not call ParallelFor.
  template <typename Fn>
  void ParallelFor(int num_tasks, Fn&& fn) {
    Run(
        num_tasks, [](void* f, int task, int thread) { (*static_cast<std::remove_reference_t<Fn>*>(f))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using TaskFn = void (*)(void* context, int task, int thread);

  void Run(int num_tasks, TaskFn fn, void* context);
  void WorkerLoop(int thread);
  // Runs tasks of the current loop until none is left to claim.
  void DrainTasks(int thread);

  TaskFn fn_ = nullptr;  // of the current loop; only whoever holds an unfinished task of it may look
  void* context_ = nullptr;
  // Number of tasks in the upper half, next task in the lower: a claim is one addition, and whether it was in time is
  // told by the same word, so a worker that wakes late can never mix up two loops.
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<int> finished_tasks_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace scion
