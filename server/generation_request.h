// A request for text as both transports understand it, before it is checked: what is absent was not said.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "engine/text/chat_template.h"
#include "server/domain_choice.h"

namespace scion {

struct ChatPrompt {
  std::vector<ChatMessage> messages;
};

struct GenerationRequest {
  std::string model = {};
  std::vector<DomainWish> domain_wishes = {};
  std::variant<std::string, std::vector<int32_t>, ChatPrompt> prompt = {};
  std::optional<int64_t> max_tokens = {};  // absent: to the end of the context
  std::optional<double> temperature = {};
  std::optional<double> top_p = {};
  std::optional<int64_t> top_k = {};
  std::optional<uint64_t> seed = {};
  std::vector<std::pair<int32_t, float>> logit_bias = {};
  std::vector<std::string> stop = {};
  std::vector<int32_t> stop_token_ids = {};
  bool ignore_eos = false;
  std::optional<int64_t> logprobs = {};  // alternatives per token
  std::string cache_salt = {};           // whose requests share the prefix cache; empty: all that have none
  absl::Time deadline = absl::InfiniteFuture();
};

struct ScoringRequest {
  std::string model = {};
  std::vector<DomainWish> domain_wishes = {};
  std::variant<std::string, std::vector<int32_t>> prompt = {};
  std::string cache_salt = {};  // as above
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace scion
