// Tells the user how far a long job is, on a stream of its own (stderr). Silent for the first two seconds, so that a
// small model's commands print nothing but their result.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace scion {

class Progress {
 public:
  enum class Unit : uint8_t { kBytes, kTokens };

  // "copying: 12.3 of 45.6 MB". `out` null: never prints.
  Progress(std::FILE* out, std::string what, uint64_t total, Unit unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Advance(uint64_t amount);

 private:
  using Clock = std::chrono::steady_clock;
  void Print();

  std::FILE* out_;
  std::string what_;
  uint64_t total_;
  Unit unit_;
  uint64_t done_ = 0;
  bool terminal_;
  bool printed_ = false;
  Clock::time_point next_;
};

}  // namespace scion
