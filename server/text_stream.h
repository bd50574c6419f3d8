// What both transports read: the events of a request turned into text, token by token.
//
// Detokenizes incrementally, looks for stop strings and, when one is found, cancels the request at once: the text ends
// before the stop string, while the tokens are all those that were generated up to it. Ends with exactly one `finish`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine.h"

namespace scion {

class ServerMetrics;

struct TextToken {
  int32_t id = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;  // best first
  int64_t text_offset = 0;        // characters (code points) of text before this token
};

struct Usage {
  int prompt_tokens = 0;
  int completion_tokens = 0;
  int cached_prompt_tokens = 0;  // of the prompt's, those that the prefix cache had
};

struct TextFinish {
  enum class Reason : uint8_t { kStop, kLength, kError };
  Reason reason = Reason::kStop;
  absl::Status status;  // an error if kError
  Usage usage;
};

struct TextChunk {
  std::string text;  // valid UTF-8; what has become certain with these tokens
  std::vector<TextToken> tokens;
  std::optional<TextFinish> finish;

  bool HasOutput() const { return !text.empty() || !tokens.empty(); }
};

// One thread at a time may call TryNext. Destroying it cancels the request.
class TextStream {
 public:
  struct Options {
    const Tokenizer* tokenizer = nullptr;  // may be null: then there is no text
    std::vector<std::string> stop;
    int prompt_tokens = 0;
    ServerMetrics* metrics = nullptr;  // not owned, may be null
  };
  TextStream(std::unique_ptr<RequestHandle> handle, Options options);

  // What has come since the last call; nothing if nothing has. A reader that lags gets many tokens in one chunk. After
  // a chunk with `finish`, nothing more ever comes.
  std::optional<TextChunk> TryNext();
  // As RequestHandle::SetNotify.
  void SetNotify(std::function<void()> notify);
  // `finish` with Cancelled will follow, unless the stream ends before.
  void Cancel();

 private:
  void TakeToken(const Event& event, TextChunk& chunk);
  void Append(const std::string& text, TextChunk& chunk);
  void Finish(TextFinish::Reason reason, absl::Status status, TextChunk& chunk);

  std::unique_ptr<RequestHandle> handle_;
  const Options options_;
  std::optional<IncrementalDetokenizer> detokenizer_;
  StopStringMatcher stops_;
  bool stop_found_ = false;
  bool finished_ = false;
  int64_t characters_ = 0;  // detokenized so far
  int completion_tokens_ = 0;
  absl::Time last_token_;
};

}  // namespace scion
