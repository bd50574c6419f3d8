#include "server/text_stream.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "server/metrics.h"

namespace scion {
namespace {

constexpr size_t kMaxTokensPerChunk = 64;

// `text` is valid UTF-8: every byte but continuation bytes begins a character.
int64_t CountCharacters(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace

TextStream::TextStream(std::unique_ptr<RequestHandle> handle, Options options)
    : handle_(std::move(handle)), options_(std::move(options)), stops_(options_.stop), last_token_(absl::Now()) {
  if (options_.tokenizer != nullptr) detokenizer_.emplace(*options_.tokenizer);
}

std::optional<TextChunk> TextStream::TryNext() {
  if (finished_) return std::nullopt;
  TextChunk chunk;
  bool any = false;
  while (!finished_ && chunk.tokens.size() < kMaxTokensPerChunk) {
    const std::optional<Event> event = handle_->TryNext();
    if (!event) break;
    switch (event->kind) {
      case Event::Kind::kPromptScore:
        continue;  // no generation asks for these
      case Event::Kind::kToken:
        TakeToken(*event, chunk);
        if (stop_found_) {
          handle_->Cancel();
          Finish(TextFinish::Reason::kStop, absl::OkStatus(), chunk);
        }
        break;
      case Event::Kind::kFinished: {
        std::string rest;
        if (detokenizer_) detokenizer_->Finish(rest);
        Append(rest, chunk);
        if (!stop_found_) stops_.Finish(chunk.text);
        if (event->finish_reason == FinishReason::kError) {
          Finish(TextFinish::Reason::kError, event->status, chunk);
        } else {
          const bool stopped = stop_found_ || event->finish_reason == FinishReason::kStop;
          Finish(stopped ? TextFinish::Reason::kStop : TextFinish::Reason::kLength, absl::OkStatus(), chunk);
        }
        break;
      }
    }
    any = true;
  }
  if (!any) return std::nullopt;
  return chunk;
}

void TextStream::TakeToken(const Event& event, TextChunk& chunk) {
  const absl::Time now = absl::Now();
  if (options_.metrics != nullptr) {
    const double seconds = absl::ToDoubleSeconds(now - last_token_);
    if (completion_tokens_ == 0) {
      options_.metrics->ObserveTimeToFirstToken(seconds);
    } else {
      options_.metrics->ObserveInterTokenLatency(seconds);
    }
  }
  last_token_ = now;
  ++completion_tokens_;
  chunk.tokens.push_back({.id = event.token_id,
                          .logprob = event.logprob,
                          .top = {event.top.begin(), event.top.end()},
                          .text_offset = characters_});
  if (!detokenizer_) return;
  std::string text;
  detokenizer_->Push(event.token_id, text);
  Append(text, chunk);
}

void TextStream::Append(const std::string& text, TextChunk& chunk) {
  if (text.empty()) return;
  characters_ += CountCharacters(text);
  stop_found_ = stops_.Push(text, chunk.text);
}

void TextStream::Finish(TextFinish::Reason reason, absl::Status status, TextChunk& chunk) {
  finished_ = true;
  chunk.finish = {.reason = reason,
                  .status = std::move(status),
                  .usage = {.prompt_tokens = options_.prompt_tokens,
                            .completion_tokens = completion_tokens_,
                            .cached_prompt_tokens = handle_->cached_prompt_tokens()}};
}

void TextStream::SetNotify(std::function<void()> notify) { handle_->SetNotify(std::move(notify)); }
void TextStream::Cancel() { handle_->Cancel(); }

}  // namespace scion
