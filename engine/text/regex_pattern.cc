#include "engine/text/regex_pattern.h"

#include <algorithm>

#include "engine/base/status.h"

namespace scion {
namespace {

// Unicode's White_Space. PCRE2's own \s also holds U+180E, which left that property in Unicode 6.3.
constexpr std::string_view kSpaceItems = "\\t-\\r\\x{85}\\p{Z}";

bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsAsciiDigit(char c) { return c >= '0' && c <= '9'; }

bool IsAsciiPunctuation(char c) { return c > ' ' && c <= '~' && !IsAsciiLetter(c) && !IsAsciiDigit(c); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (position_ < pattern_.size()) SCION_RETURN_IF_ERROR(Item());
    return std::move(out_);
  }

 private:
  std::string_view Rest() const { return pattern_.substr(position_); }

  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(
        absl::StrCat("regex ", Quoted(pattern_), ": ", ToAbsl(what), " at byte ", position_, " is not supported"));
  }

  void Copy(size_t count) {
    out_.append(pattern_.substr(position_, count));
    position_ += count;
  }

  absl::Status Item() {
    switch (pattern_[position_]) {
      case '\\':
        return Escape(/*in_class=*/false);
      case '[':
        return Class();
      case '(':
        return Group();
      case '{':
        return Repeat();
      case '^':
      case '$':
      case '.':
        return Unsupported(std::string("'") + pattern_[position_] + "'");
      default:
        Copy(1);
        return absl::OkStatus();
    }
  }

  absl::Status Group() {
    for (const std::string_view opening : {"(?:", "(?i:", "(?>", "(?=", "(?!", "(?<=", "(?<!"}) {
      if (Rest().starts_with(opening)) {
        Copy(opening.size());
        return absl::OkStatus();
      }
    }
    if (Rest().starts_with("(?") || Rest().starts_with("(*")) return Unsupported("this kind of group");
    Copy(1);
    return absl::OkStatus();
  }

  // {n}, {n,}, {n,m}
  absl::Status Repeat() {
    const size_t close = Rest().find('}');
    if (close == std::string_view::npos) return Unsupported("'{' without '}'");
    const std::string_view inside = Rest().substr(1, close - 1);
    int count = 0;
    int commas = 0;
    for (const char c : inside) {
      if (c == ',') {
        ++commas;
        count = 0;
      } else if (IsAsciiDigit(c)) {
        count = std::min(count * 10 + (c - '0'), kMaxRepeat + 1);
      } else {
        return Unsupported("this repetition");
      }
      if (count > kMaxRepeat) return Unsupported("a repetition above 255");
    }
    if (commas > 1 || inside.empty() || inside[0] == ',') return Unsupported("this repetition");
    // Oniguruma reads {n}+ as a repetition of the repetition, PCRE2 as possessive.
    if (Rest().substr(close + 1).starts_with('+')) return Unsupported("'+' after a repetition");
    Copy(close + 1);
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    if (Rest().size() < 2) return Unsupported("a lone '\\'");
    const char c = Rest()[1];
    if (c == 's' || (c == 'S' && !in_class)) {
      if (in_class) {
        out_.append(kSpaceItems);
      } else {
        out_.append(c == 's' ? "[" : "[^").append(kSpaceItems).append("]");
      }
      position_ += 2;
      return absl::OkStatus();
    }
    if (c == 'p' || c == 'P') return Property();
    const bool same_meaning = std::string_view("dDrnt").find(c) != std::string_view::npos;
    if (!same_meaning && !IsAsciiPunctuation(c)) return Unsupported(std::string("'\\") + c + "'");
    Copy(2);
    return absl::OkStatus();
  }

  // \p{L}, \p{Lu}: general categories.
  absl::Status Property() {
    const size_t close = Rest().find('}');
    const bool braces = Rest().size() > 2 && Rest()[2] == '{' && close != std::string_view::npos;
    if (!braces) return Unsupported("a property without braces");
    const std::string_view name = Rest().substr(3, close - 3);
    const bool category =
        (name.size() == 1 || name.size() == 2) && std::all_of(name.begin(), name.end(), IsAsciiLetter);
    if (!category) return Unsupported("a property that is no general category");
    Copy(close + 1);
    return absl::OkStatus();
  }

  absl::Status Class() {
    Copy(1);
    if (Rest().starts_with('^')) Copy(1);
    if (Rest().starts_with(']')) return Unsupported("an empty class");
    while (position_ < pattern_.size()) {
      const char c = pattern_[position_];
      if (c == ']') {
        Copy(1);
        return absl::OkStatus();
      }
      if (c == '[') return Unsupported("a class inside a class");
      if (Rest().starts_with("&&")) return Unsupported("'&&' inside a class");
      if (c == '\\') {
        SCION_RETURN_IF_ERROR(Escape(/*in_class=*/true));
      } else {
        Copy(1);
      }
    }
    return Unsupported("'[' without ']'");
  }

  std::string_view pattern_;
  size_t position_ = 0;
  std::string out_;
};

}  // namespace

std::string EscapePattern(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (IsAsciiPunctuation(c)) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("regex of ", pattern.size(), " bytes, more than the limit of ", kMaxPatternBytes));
  }
  if (pattern.empty()) return absl::InvalidArgumentError("empty regex");
  return Translator(pattern).Run();
}

}  // namespace scion
