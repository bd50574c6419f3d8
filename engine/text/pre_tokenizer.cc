#include "engine/text/pre_tokenizer.h"

#include <utility>

#include "engine/base/status.h"

namespace scion {
namespace {

constexpr int64_t kStepsPerByteAndSplit = 100;
constexpr int64_t kFreeSteps = 1'000'000;

void Split(const Regex& regex, Regex::Scratch& scratch, PreTokenizer::Pieces& pieces) {
  pieces.next_ends.clear();
  size_t begin = 0;
  for (const size_t end : pieces.ends) {
    const std::string_view piece = std::string_view(pieces.text).substr(begin, end - begin);
    Regex::Match match;
    for (size_t from = 0; from < piece.size() && regex.Find(piece, from, scratch, match); from = match.end) {
      if (match.begin > from) pieces.next_ends.push_back(begin + match.begin);
      if (match.end < piece.size()) pieces.next_ends.push_back(begin + match.end);
    }
    pieces.next_ends.push_back(end);
    begin = end;
  }
  std::swap(pieces.ends, pieces.next_ends);
}

void PrefixSpace(PreTokenizer::Pieces& pieces) {
  pieces.next_text.clear();
  size_t begin = 0;
  for (size_t& end : pieces.ends) {
    if (pieces.text[begin] != ' ') pieces.next_text.push_back(' ');
    pieces.next_text.append(pieces.text, begin, end - begin);
    begin = std::exchange(end, pieces.next_text.size());
  }
  std::swap(pieces.text, pieces.next_text);
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<PreTokenizeStep>& steps) {
  PreTokenizer pre_tokenizer;
  for (const PreTokenizeStep& step : steps) {
    Step& added = pre_tokenizer.steps_.emplace_back();
    added.kind = step.kind;
    if (step.kind == PreTokenizeStep::Kind::kPrefixSpace) continue;
    SCION_ASSIGN_OR_RETURN(added.regex, Regex::Create(step.pattern, step.kind == PreTokenizeStep::Kind::kSplitLiteral));
  }
  return pre_tokenizer;
}

int64_t PreTokenizer::MaxRegexSteps(size_t text_bytes) const {
  return kFreeSteps + kStepsPerByteAndSplit * static_cast<int64_t>(steps_.size() * text_bytes);
}

void PreTokenizer::Run(Regex::Scratch& scratch, Pieces& pieces) const {
  pieces.ends.clear();
  if (pieces.text.empty()) return;
  pieces.ends.push_back(pieces.text.size());
  for (const Step& step : steps_) {
    if (step.kind == PreTokenizeStep::Kind::kPrefixSpace) {
      PrefixSpace(pieces);
    } else {
      Split(step.regex, scratch, pieces);
    }
  }
}

}  // namespace scion
