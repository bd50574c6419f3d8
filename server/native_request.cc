#include "server/native_request.h"

#include <utility>

#include "server/body_reader.h"

namespace scion {

absl::StatusOr<ScoringRequest> ParseScoreCall(std::string_view body, std::string_view domain_header) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  BodyReader reader(*json);
  ScoringRequest request;
  request.model = reader.String("model");
  request.domain_wishes = {{.source = "domain", .domain = reader.String("domain")},
                           {.source = "x-scion-domain", .domain = std::string(domain_header)}};
  request.cache_salt = reader.String("cache_salt");
  const Json* prompt = reader.Find("prompt");
  if (prompt != nullptr && prompt->is_string()) {
    request.prompt = prompt->get<std::string>();
  } else if (prompt != nullptr && prompt->is_array()) {
    request.prompt = reader.TokenIds("prompt", *prompt);
  } else {
    reader.Fail("prompt", "prompt must be a string, or an array of token ids");
  }
  if (!reader.status().ok()) return reader.status();
  return request;
}

absl::StatusOr<TokenizeCall> ParseTokenizeCall(std::string_view body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  BodyReader reader(*json);
  if (reader.Find("text") == nullptr) reader.Fail("text", "text is missing");
  TokenizeCall call = {.text = reader.String("text"),
                       .add_special = reader.Bool("add_special"),
                       .parse_special = reader.Bool("parse_special")};
  if (!reader.status().ok()) return reader.status();
  return call;
}

absl::StatusOr<DetokenizeCall> ParseDetokenizeCall(std::string_view body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  BodyReader reader(*json);
  DetokenizeCall call = {.token_ids = {}, .skip_special = reader.Bool("skip_special")};
  const Json* ids = reader.Find("token_ids");
  if (ids != nullptr && ids->is_array()) {
    call.token_ids = reader.TokenIds("token_ids", *ids);
  } else {
    reader.Fail("token_ids", "token_ids must be an array of token ids");
  }
  if (!reader.status().ok()) return reader.status();
  return call;
}

}  // namespace scion
