// The HTTP answers to what OpenAI's API lacks; the messages of scion.v1 in JSON, and the same words of refusal.
//
//   POST /v1/score       {"prompt": text or ids, "domain", "model", "cache_salt"} ->
//                        {"token_ids", "logprobs" (one fewer), "total_logprob", "domain"}; null for what is no finite
//                        number, which only damaged weights give
//   POST /v1/tokenize    {"text", "add_special", "parse_special"} -> {"token_ids"}
//   POST /v1/detokenize  {"token_ids", "skip_special"} -> {"text", "bytes"}; text: what is valid UTF-8 of the bytes
//   GET  /v1/domains     -> {"model", "default_domain", "domains": [{"name", "num_experts", "generation",
//                        "weight_bytes", "requests", "prompt_tokens", "generated_tokens"}]}
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/admission.h"
#include "server/http_message.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace scion {

inline constexpr std::string_view kScorePath = "/v1/score";
inline constexpr std::string_view kTokenizePath = "/v1/tokenize";
inline constexpr std::string_view kDetokenizePath = "/v1/detokenize";
inline constexpr std::string_view kDomainsPath = "/v1/domains";

// path: one of the three that are posted to. The references must outlive the answer and the worker pool's jobs.
std::unique_ptr<HttpAnswer> MakeNativeAnswer(std::string_view path, std::string body, std::string domain_header,
                                             const Admission& admission, ServerMetrics& metrics, WorkerPool& workers);

HttpResponse DomainsPage(const Admission& admission);

}  // namespace scion
