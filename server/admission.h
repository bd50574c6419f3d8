// The gate between transports and engine: checks a request, makes tokens of its prompt, chooses its domain, fills in
// what it left open, and submits it.
//
// Also knows which phase of life the server is in. Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/generation_request.h"
#include "server/metrics.h"
#include "server/sampling_defaults.h"
#include "server/text_stream.h"

namespace scion {

inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;

struct ServedModel {
  std::unique_ptr<Engine> engine;
  std::string name;
  SamplingDefaults sampling_defaults;
};

class Admission {
 public:
  struct Options {
    absl::Duration request_timeout = absl::Minutes(10);  // of a request that sets no earlier deadline itself
    ServerMetrics* metrics = nullptr;                    // not owned
  };
  explicit Admission(Options options) : options_(options) {}

  // From now on requests are taken. Once only; the model must outlive all streams.
  void Open(ServedModel model);
  // From now on requests get Unavailable; those that were admitted go on.
  void StartDraining();
  bool ready() const { return model() != nullptr && !draining_.load(); }

  // Null until Open.
  const ServedModel* model() const { return served_.load(); }

  // Errors as the request deserves: InvalidArgument, NotFound, ResourceExhausted, Unavailable. May take long for a long
  // text (it is tokenized here): not for a thread that others wait for.
  absl::StatusOr<std::unique_ptr<TextStream>> Generate(GenerationRequest request) const;

  struct Scoring {
    std::unique_ptr<RequestHandle> handle;
    std::vector<int32_t> token_ids;
    std::string domain;
  };
  absl::StatusOr<Scoring> Score(ScoringRequest request) const;

 private:
  absl::StatusOr<const ServedModel*> Serving() const;
  absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& text) const;
  absl::StatusOr<std::vector<int32_t>> TokenizeChat(const ChatPrompt& prompt) const;
  absl::Status CheckTextBytes(size_t bytes) const;

  const Options options_;
  std::optional<ServedModel> model_;
  absl::StatusOr<ChatTemplate> chat_template_ = absl::UnimplementedError("this model has no tokenizer");
  std::atomic<const ServedModel*> served_{nullptr};  // &*model_ once that is complete
  std::atomic<bool> draining_{false};
  size_t max_token_bytes_ = 1;  // of any token of the vocabulary
  int capacity_tokens_ = 0;     // the context, or less if the KV cache is smaller
};

}  // namespace scion
