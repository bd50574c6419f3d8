#include "server/http_service.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/generation_answer.h"
#include "server/native_answer.h"
#include "server/request_error.h"

namespace scion {
namespace {

constexpr std::string_view kModelsPrefix = "/v1/models/";

std::unique_ptr<HttpAnswer> Answer(HttpResponse response) { return std::make_unique<ReadyAnswer>(std::move(response)); }

HttpResponse TextPage(int status, std::string text) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(text)};
}

// "%40" for '@' and the like; what is no escape stays.
std::string UnescapePath(std::string_view path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '%' && i + 2 < path.size() && std::isxdigit(static_cast<unsigned char>(path[i + 1])) &&
        std::isxdigit(static_cast<unsigned char>(path[i + 2]))) {
      out += absl::HexStringToBytes(ToAbsl(path.substr(i + 1, 2)));
      i += 2;
    } else {
      out += path[i];
    }
  }
  return out;
}

}  // namespace

OpenAiHttpService::OpenAiHttpService(std::string version, const Admission& admission, ServerMetrics& metrics,
                                     WorkerPool& workers)
    : version_(std::move(version)),
      admission_(admission),
      metrics_(metrics),
      workers_(workers),
      start_seconds_(absl::ToUnixSeconds(absl::Now())) {
  pages_["/healthz"] = [] { return TextPage(200, "ok\n"); };
  pages_["/readyz"] = [this] { return Readiness(); };
  pages_["/metrics"] = [this] {
    const ServedModel* model = admission_.model();
    HttpResponse response =
        TextPage(200, metrics_.Text(model == nullptr ? nullptr : model->engine.get(), version_, admission_.ready()));
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    return response;
  };
  pages_["/v1/models"] = [this] { return Models(""); };
  pages_[std::string(kDomainsPath)] = [this] { return DomainsPage(admission_); };
}

std::unique_ptr<HttpAnswer> OpenAiHttpService::Handle(HttpRequest request) {
  const bool is_chat = request.path == "/v1/chat/completions";
  const bool is_generation = is_chat || request.path == "/v1/completions";
  const bool is_native = request.path == kScorePath || request.path == kTokenizePath || request.path == kDetokenizePath;
  const bool is_post = is_generation || is_native;
  const bool is_model = request.path.starts_with(kModelsPrefix) && request.path.size() > kModelsPrefix.size();
  const auto page = pages_.find(request.path);
  if (!is_post && !is_model && page == pages_.end()) {
    return Answer(Refuse(404, absl::StrCat("there is no page ", Quoted(request.path))));
  }
  const char* const allowed = is_post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
  if (request.method == "OPTIONS") return Answer({.status = 204, .headers = {{"Allow", allowed}}});
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  if (is_post ? request.method != "POST" : !is_get) {
    HttpResponse response = Refuse(405, absl::StrCat(request.path, " takes ", allowed, ", not ", request.method));
    response.headers.emplace_back("Allow", allowed);
    return Answer(std::move(response));
  }
  if (is_generation) {
    return MakeGenerationAnswer(is_chat ? OpenAiKind::kChat : OpenAiKind::kCompletion, std::move(request.body),
                                std::string(request.Header("x-scion-domain")), admission_, metrics_, workers_);
  }
  if (is_native) {
    return MakeNativeAnswer(request.path, std::move(request.body), std::string(request.Header("x-scion-domain")),
                            admission_, metrics_, workers_);
  }
  if (is_model) return Answer(Models(UnescapePath(std::string_view(request.path).substr(kModelsPrefix.size()))));
  return Answer(page->second());
}

HttpResponse OpenAiHttpService::Refuse(int status, std::string_view message) {
  // The status of HTTP itself decides; the code only chooses the type that the body names.
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  if (status == 404) code = absl::StatusCode::kNotFound;
  if (status == 503) code = absl::StatusCode::kUnavailable;
  HttpResponse response = ErrorResponse(absl::Status(code, ToAbsl(message)));
  response.status = status;
  return response;
}

HttpResponse OpenAiHttpService::Readiness() const {
  if (admission_.ready()) return TextPage(200, "ready\n");
  HttpResponse response = TextPage(503, admission_.model() == nullptr ? "starting\n" : "draining\n");
  response.headers.emplace_back("Retry-After", "1");
  return response;
}

HttpResponse OpenAiHttpService::Models(std::string_view wanted) const {
  const ServedModel* served = admission_.model();
  if (served == nullptr) {
    return ErrorResponse(absl::UnavailableError("the server is starting: the model is being loaded"));
  }
  const ModelSpec& spec = served->engine->spec();
  auto entry = [&](const std::string& id, const std::string& domain) {
    return nlohmann::ordered_json{{"id", id},
                                  {"object", "model"},
                                  {"created", start_seconds_},
                                  {"owned_by", "scion"},
                                  {"root", served->name},
                                  {"domain", domain},
                                  {"max_model_len", spec.max_position_embeddings}};
  };
  nlohmann::ordered_json data = nlohmann::ordered_json::array();
  data.push_back(entry(served->name, spec.domains[static_cast<size_t>(spec.default_domain)].name));
  for (const DomainSpec& domain : spec.domains) {
    data.push_back(entry(absl::StrCat(served->name, "@", domain.name), domain.name));
  }
  auto dump = [](const nlohmann::ordered_json& json) {
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  };
  if (wanted.empty()) return {.body = dump({{"object", "list"}, {"data", std::move(data)}})};
  for (const auto& one : data) {
    if (one["id"] == wanted) return {.body = dump(one)};
  }
  return ErrorResponse(
      WithErrorCode(WithParameter(absl::NotFoundError(absl::StrCat("there is no model ", Quoted(wanted))), "model"),
                    "model_not_found"));
}

}  // namespace scion
