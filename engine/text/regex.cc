#include "engine/text/regex.h"

#include <new>
#include <string>

#include "engine/base/status.h"
#include "engine/text/regex_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace scion {
namespace {

// The interpreter's memory for backtracking, where there is no JIT or where the JIT's stack of 32 KiB is too small.
constexpr uint32_t kHeapLimitKib = 64 * 1024;

}  // namespace

Regex::Scratch::Scratch(int64_t steps)
    : steps_left_(steps),
      match_data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  if (match_data_ == nullptr || context_ == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(context_, kHeapLimitKib);
  pcre2_set_match_limit(context_, UINT32_MAX);  // JIT and interpreter count differently; our own steps don't
  const auto count_step = [](pcre2_callout_block* block, void* data) -> int {
    Scratch& scratch = *static_cast<Scratch*>(data);
    const size_t position = block->current_position;
    const size_t passed =
        position > scratch.last_position_ ? position - scratch.last_position_ : scratch.last_position_ - position;
    scratch.last_position_ = position;
    scratch.steps_left_ -= 1 + static_cast<int64_t>(passed);
    return scratch.steps_left_ > 0 ? 0 : PCRE2_ERROR_CALLOUT;
  };
  pcre2_set_callout(context_, count_step, this);
}

Regex::Scratch::~Scratch() {
  pcre2_match_data_free(match_data_);
  pcre2_match_context_free(context_);
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::Create(std::string_view pattern, bool literal) {
  SCION_ASSIGN_OR_RETURN(const std::string translated, TranslatePattern(literal ? EscapePattern(pattern) : pattern));
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_AUTO_CALLOUT | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                  &error_offset, nullptr));
  if (regex.code_ == nullptr) {
    char message[256] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return absl::InvalidArgumentError(absl::StrCat("regex ", Quoted(pattern), ": ", message));
  }
  // Not an error where there is none: the interpreter gives the same matches.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

bool Regex::Find(std::string_view text, size_t from, Scratch& scratch, Match& match) const {
  if (scratch.exhausted()) return false;
  scratch.last_position_ = from;
  --scratch.steps_left_;
  const auto run = [&](uint32_t options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       options | PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, scratch.match_data_, scratch.context_);
  };
  int result = run(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {  // out of steps, match limit or memory: no more matches in this text
    scratch.steps_left_ = 0;
    return false;
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.match_data_);
  match = {.begin = offsets[0], .end = offsets[1]};
  return true;
}

}  // namespace scion
