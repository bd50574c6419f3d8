#include <algorithm>
#include <utility>

#include "engine/text/tokenizer.h"

namespace scion {

StopStringMatcher::StopStringMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    Pattern pattern{.text = std::move(stop), .border = {}, .matched = 0};
    pattern.border.assign(pattern.text.size() + 1, 0);
    for (size_t end = 1, border = 0; end < pattern.text.size(); ++end) {
      while (border > 0 && pattern.text[end] != pattern.text[border]) border = pattern.border[border];
      if (pattern.text[end] == pattern.text[border]) ++border;
      pattern.border[end + 1] = border;
    }
    patterns_.push_back(std::move(pattern));
  }
}

bool StopStringMatcher::Push(std::string_view text, std::string& out) {
  for (const char byte : text) {
    held_.push_back(byte);
    size_t longest = 0;
    for (Pattern& pattern : patterns_) {
      size_t& matched = pattern.matched;
      while (matched > 0 && pattern.text[matched] != byte) matched = pattern.border[matched];
      if (pattern.text[matched] == byte) ++matched;
      if (matched == pattern.text.size()) longest = std::max(longest, matched);
    }
    if (longest > 0) {
      out.append(held_, 0, held_.size() - longest);
      held_.clear();
      return true;
    }
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopStringMatcher::Finish(std::string& out) {
  out.append(held_);
  held_.clear();
  for (Pattern& pattern : patterns_) pattern.matched = 0;
}

}  // namespace scion
