// A compiled pattern of a pre-tokenizer: finds matches in UTF-8 text in a bounded number of steps.
//
// A step is one item of the pattern tried, or one byte passed over. Steps are counted by PCRE2's callouts, so that a
// hostile pattern on a hostile text ends after a time linear in the text, by the same count on every run.
// Thread-safe; a Scratch belongs to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace scion {

class Regex {
 public:
  class Scratch {
   public:
    // steps: how many may be taken in all.
    explicit Scratch(int64_t steps);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    bool exhausted() const { return steps_left_ <= 0; }

   private:
    friend class Regex;
    int64_t steps_left_;
    size_t last_position_ = 0;
    pcre2_real_match_data_8* match_data_;
    pcre2_real_match_context_8* context_;
  };

  struct Match {
    size_t begin;
    size_t end;
  };

  // A pattern in the dialect of regex_pattern.h, or, if `literal`, a string to be found as it is.
  static absl::StatusOr<Regex> Create(std::string_view pattern, bool literal);

  // The first non-empty match at or after `from`; `text` is well-formed UTF-8. False if there is none, or if the steps
  // have run out (`scratch.exhausted()`).
  bool Find(std::string_view text, size_t from, Scratch& scratch, Match& match) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace scion
