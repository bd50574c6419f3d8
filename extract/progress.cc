#include "extract/progress.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_format.h"

namespace scion {

using std::chrono::milliseconds;

Progress::Progress(std::FILE* out, std::string what, uint64_t total, Unit unit)
    : out_(out),
      what_(std::move(what)),
      total_(total),
      unit_(unit),
      terminal_(out != nullptr && ::isatty(::fileno(out)) == 1),
      next_(Clock::now() + milliseconds(2000)) {}

Progress::~Progress() {
  if (!printed_) return;
  Print();
  if (terminal_) std::fputc('\n', out_);
}

void Progress::Advance(uint64_t amount) {
  done_ += amount;
  if (out_ == nullptr) return;
  const Clock::time_point now = Clock::now();
  if (now < next_) return;
  // A terminal's line is overwritten; a log gets few lines.
  next_ = now + milliseconds(terminal_ ? 250 : 5000);
  Print();
}

void Progress::Print() {
  printed_ = true;
  const std::string line = unit_ == Unit::kBytes
                               ? absl::StrFormat("%s: %.1f of %.1f MB", what_, static_cast<double>(done_) * 1e-6,
                                                 static_cast<double>(total_) * 1e-6)
                               : absl::StrFormat("%s: %d of %d tokens", what_, done_, total_);
  std::fprintf(out_, terminal_ ? "\r%s" : "%s\n", line.c_str());
  std::fflush(out_);
}

}  // namespace scion
