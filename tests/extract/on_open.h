// Something that happens while a file is being opened, so that a test decides what a reader meets in the middle.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <utility>

namespace scion::test {

// While it lives, `act` runs when this thread opens `path` to read: inside open(), which then fails with EAGAIN, since
// the engine opens with O_NONBLOCK. A lease (fcntl(2)) makes the kernel send a signal to its holder before open()
// returns; holder and reader being one thread, the handler runs at that very place, and may do what any code may. One
// at a time.
class OnOpen {
 public:
  OnOpen(const std::filesystem::path& path, std::function<void()> act)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    act_ = std::move(act);
    struct sigaction action = {};
    action.sa_handler = [](int) { act_(); };
    EXPECT_EQ(::sigaction(SIGUSR1, &action, &before_), 0);
    const f_owner_ex owner = {F_OWNER_TID, ::gettid()};
    EXPECT_EQ(::fcntl(fd_, F_SETLEASE, F_WRLCK), 0) << path;
    EXPECT_EQ(::fcntl(fd_, F_SETSIG, SIGUSR1), 0);
    EXPECT_EQ(::fcntl(fd_, F_SETOWN_EX, &owner), 0);
  }
  ~OnOpen() {
    ::close(fd_);
    ::sigaction(SIGUSR1, &before_, nullptr);
  }
  OnOpen(const OnOpen&) = delete;
  OnOpen& operator=(const OnOpen&) = delete;

 private:
  static inline std::function<void()> act_;
  const int fd_;
  struct sigaction before_ = {};
};

}  // namespace scion::test
