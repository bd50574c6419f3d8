#include "engine/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace scion {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

// Plain ints on purpose: under TSan a task that runs twice, or a result that is read before its loop has ended, is a
// race.
TEST_P(ThreadPoolTest, RunsEveryTaskExactlyOnceForEverySize) {
  EXPECT_EQ(pool_.num_threads(), GetParam());
  for (int repetition = 0; repetition < 20; ++repetition) {
    for (int num_tasks : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> runs(static_cast<size_t>(num_tasks));
      pool_.ParallelFor(num_tasks, [&](int task, int) { ++runs[static_cast<size_t>(task)]; });
      for (int task = 0; task < num_tasks; ++task)
        ASSERT_EQ(runs[static_cast<size_t>(task)], 1) << task << " of " << num_tasks;
    }
  }
}

TEST_P(ThreadPoolTest, NoTwoTasksShareAThreadIndexAtOnce) {
  std::vector<int> per_thread(static_cast<size_t>(pool_.num_threads()));
  std::atomic<int> out_of_range = 0;
  for (int repetition = 0; repetition < 200; ++repetition) {
    pool_.ParallelFor(50, [&](int, int thread) {
      if (thread < 0 || thread >= pool_.num_threads()) {
        ++out_of_range;
      } else {
        ++per_thread[static_cast<size_t>(thread)];  // a race, were the index shared
      }
    });
  }
  EXPECT_EQ(out_of_range, 0);
  int total = 0;
  for (int count : per_thread) total += count;
  EXPECT_EQ(total, 200 * 50);
}

TEST_P(ThreadPoolTest, AShortLoopSeesWhatTheOneBeforeWrote) {
  std::vector<int64_t> values(64, 1);
  for (int step = 0; step < 2000; ++step) {
    pool_.ParallelFor(64, [&](int task, int) {
      // Each task reads what another thread may have written in the loop before.
      if (step % 2 == 0) {
        if (task < 32) values[static_cast<size_t>(task)] = values[static_cast<size_t>(task) + 32] + 1;
      } else if (task >= 32) {
        values[static_cast<size_t>(task)] = values[static_cast<size_t>(task) - 32] + 1;
      }
    });
  }
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(values[i + 32], 1 + 2000);
}

TEST_P(ThreadPoolTest, PoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(GetParam());
    std::atomic<int> sum = 0;
    if (i % 2 == 0) pool.ParallelFor(10, [&](int task, int) { sum += task; });
    EXPECT_EQ(sum, i % 2 == 0 ? 45 : 0);
  }
}

// Every task waits for all the others to begin: a thread that is not woken leaves them waiting for ever.
TEST_P(ThreadPoolTest, SleepingThreadsAreWoken) {
  for (int repetition = 0; repetition < 5; ++repetition) {
    // Long enough for idle threads to have stopped spinning.
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(10)) std::this_thread::yield();
    std::atomic<int> begun = 0;
    pool_.ParallelFor(GetParam(), [&](int, int) {
      ++begun;
      while (begun < GetParam()) std::this_thread::yield();
    });
    EXPECT_EQ(begun, GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 5, 8));

}  // namespace
}  // namespace scion
