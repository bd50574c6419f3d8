// The JSON bodies of OpenAI's completions and chat completions, read into a GenerationRequest.
//
// Parameters that OpenAI (or a server like it) knows and that would change the answer, but that are not built here, are
// refused by name unless they have their neutral value. Other unknown members are ignored.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/generation_request.h"

namespace scion {

enum class OpenAiKind : uint8_t { kCompletion, kChat };

struct OpenAiCall {
  OpenAiKind kind = OpenAiKind::kCompletion;
  GenerationRequest request;
  bool stream = false;
  bool include_usage = false;     // stream_options.include_usage
  bool return_token_ids = false;  // adds token_ids to every choice
};

// `domain_header`: of x-scion-domain, or empty. InvalidArgument names the parameter (request_error.h). Ranges of values
// are checked by Admission, types here.
absl::StatusOr<OpenAiCall> ParseOpenAiCall(OpenAiKind kind, std::string_view body, std::string_view domain_header);

}  // namespace scion
