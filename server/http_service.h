// The HTTP API: which path does what.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "server/admission.h"
#include "server/http_message.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace scion {

class OpenAiHttpService final : public HttpService {
 public:
  // The references must outlive the service and its answers.
  OpenAiHttpService(std::string version, const Admission& admission, ServerMetrics& metrics, WorkerPool& workers);

  std::unique_ptr<HttpAnswer> Handle(HttpRequest request) override;
  HttpResponse Refuse(int status, std::string_view message) override;

 private:
  using Page = std::function<HttpResponse()>;

  HttpResponse Readiness() const;
  HttpResponse Models(std::string_view wanted) const;

  const std::string version_;
  const Admission& admission_;
  ServerMetrics& metrics_;
  WorkerPool& workers_;
  const int64_t start_seconds_;
  std::map<std::string, Page> pages_;  // GET
};

}  // namespace scion
