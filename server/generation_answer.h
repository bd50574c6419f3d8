// The HTTP answer to a completion: admitted on a worker thread, then whole or as server-sent events.
//
// The status line waits for the first event, so that a request that fails before its first token has a proper status.
#pragma once

#include <memory>
#include <string>

#include "server/admission.h"
#include "server/http_message.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "server/worker_pool.h"

namespace scion {

// `domain_header`: of x-scion-domain, or empty. The references must outlive the answer and the worker pool's jobs.
std::unique_ptr<HttpAnswer> MakeGenerationAnswer(OpenAiKind kind, std::string body, std::string domain_header,
                                                 const Admission& admission, ServerMetrics& metrics,
                                                 WorkerPool& workers);

// An error in OpenAI's form, with Retry-After where trying again may help.
HttpResponse ErrorResponse(const absl::Status& status);

}  // namespace scion
