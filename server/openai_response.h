// Answers in OpenAI's JSON: whole, or as server-sent events. All output is valid UTF-8.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/text/tokenizer.h"
#include "server/openai_request.h"
#include "server/text_stream.h"

namespace scion {

class OpenAiResponse {
 public:
  struct Options {
    OpenAiKind kind = OpenAiKind::kCompletion;
    std::string id;       // "cmpl-..." or "chatcmpl-..."
    std::string model;    // as the request named it
    int64_t created = 0;  // Unix seconds
    bool include_usage = false;
    bool return_token_ids = false;
    bool logprobs = false;
    const Tokenizer* tokenizer = nullptr;  // may be null
  };
  explicit OpenAiResponse(Options options) : options_(std::move(options)) {}

  // A whole answer; `answer` is all chunks put together.
  std::string Whole(const TextChunk& answer) const;

  // Events of a stream, to be sent one after another. With `finish`: the end, [DONE] included; an error is an event of
  // its own, after which nothing comes.
  std::string Events(const TextChunk& chunk);

 private:
  const Options options_;
  bool has_begun_ = false;
};

}  // namespace scion
