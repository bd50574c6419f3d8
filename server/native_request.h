// The JSON bodies of what OpenAI's API lacks: score, tokenize, detokenize; the messages of scion.v1 in JSON.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/generation_request.h"

namespace scion {

struct TokenizeCall {
  std::string text;
  bool add_special = false;
  bool parse_special = false;
};

struct DetokenizeCall {
  std::vector<int32_t> token_ids;
  bool skip_special = false;
};

// InvalidArgument names the parameter (request_error.h). `domain_header`: of x-scion-domain, or empty.
absl::StatusOr<ScoringRequest> ParseScoreCall(std::string_view body, std::string_view domain_header);
absl::StatusOr<TokenizeCall> ParseTokenizeCall(std::string_view body);
absl::StatusOr<DetokenizeCall> ParseDetokenizeCall(std::string_view body);

}  // namespace scion
