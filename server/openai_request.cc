#include "server/openai_request.h"

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "server/body_reader.h"
#include "server/request_error.h"

namespace scion {
namespace {

bool IsFalse(const Json& v) { return v == false; }
bool IsOne(const Json& v) { return v == 1; }
bool IsZero(const Json& v) { return v == 0; }
bool IsEmpty(const Json& v) { return v.empty() || v == ""; }
bool IsNone(const Json& v) { return v == "none"; }
bool IsText(const Json& v) { return v.is_object() && v.value("type", Json()) == "text"; }
bool IsTextOnly(const Json& v) { return v == Json::array({"text"}); }
bool Never(const Json&) { return false; }

struct UnbuiltParameter {
  const char* name;
  bool (*is_neutral)(const Json& value);  // says the same as leaving it out
};

// null is neutral for all.
constexpr UnbuiltParameter kUnbuilt[] = {
    {"n", IsOne},
    {"best_of", IsOne},
    {"echo", IsFalse},
    {"suffix", IsEmpty},
    {"presence_penalty", IsZero},
    {"frequency_penalty", IsZero},
    {"tools", IsEmpty},
    {"tool_choice", IsNone},
    {"functions", IsEmpty},
    {"function_call", IsNone},
    {"response_format", IsText},
    {"modalities", IsTextOnly},
    {"audio", Never},
    {"web_search_options", Never},
    {"reasoning_effort", IsNone},
    {"verbosity", Never},
    // Not OpenAI's, but common among its relatives.
    {"min_p", IsZero},
    {"min_tokens", IsZero},
    {"repetition_penalty", IsOne},
    {"use_beam_search", IsFalse},
    {"guided_json", Never},
    {"guided_regex", Never},
    {"guided_choice", Never},
    {"guided_grammar", Never},
};

void RefuseUnbuilt(BodyReader& reader) {
  for (const UnbuiltParameter& parameter : kUnbuilt) {
    const Json* value = reader.Find(parameter.name);
    if (value == nullptr || parameter.is_neutral(*value)) continue;
    const bool has_other_use = parameter.is_neutral != Never;
    reader.Fail(parameter.name, absl::StrCat("this server does not support ", parameter.name,
                                             has_other_use ? " other than its default" : ""));
  }
}

void ReadPrompt(BodyReader& reader, GenerationRequest& out) {
  const Json* prompt = reader.Find("prompt");
  if (prompt == nullptr) return reader.Fail("prompt", "prompt is missing");
  if (prompt->is_array() && !prompt->empty() && ((*prompt)[0].is_string() || (*prompt)[0].is_array())) {
    if (prompt->size() > 1) {
      return reader.Fail("prompt", absl::StrCat("this server takes one prompt per request, not ", prompt->size()));
    }
    prompt = &(*prompt)[0];
  }
  if (prompt->is_string()) {
    out.prompt = prompt->get<std::string>();
  } else if (prompt->is_array()) {
    out.prompt = reader.TokenIds("prompt", *prompt);
  } else {
    reader.Fail("prompt", "prompt must be a string, or an array of token ids");
  }
}

void ReadContent(BodyReader& reader, const Json& content, const std::string& where, std::string& out) {
  if (content.is_string()) {
    out = content.get<std::string>();
    return;
  }
  if (!content.is_array()) return reader.Fail("messages", where + " must be a string or an array of text parts");
  for (const Json& part : content) {
    const Json* type = part.is_object() ? FindMember(part, "type") : nullptr;
    if (type == nullptr || !type->is_string()) {
      return reader.Fail("messages", where + " has a part without a type");
    }
    if (*type != "text") {
      return reader.Fail("messages",
                         absl::StrCat(where, " has a part of type ", Quoted(type->get_ref<const std::string&>()),
                                      "; this server takes text only"));
    }
    const Json* text = FindMember(part, "text");
    if (text == nullptr || !text->is_string()) return reader.Fail("messages", where + " has a text part without text");
    out += text->get_ref<const std::string&>();
  }
}

void ReadMessages(BodyReader& reader, GenerationRequest& out) {
  const Json* messages = reader.Find("messages");
  if (messages == nullptr) return reader.Fail("messages", "messages is missing");
  if (!messages->is_array() || messages->empty()) {
    return reader.Fail("messages", "messages must be an array of at least one message");
  }
  ChatPrompt chat;
  for (size_t i = 0; i < messages->size() && reader.status().ok(); ++i) {
    const Json& message = (*messages)[i];
    const std::string where = absl::StrCat("messages[", i, "]");
    if (!message.is_object()) return reader.Fail("messages", where + " must be an object");
    const Json* role = FindMember(message, "role");
    if (role == nullptr || !role->is_string()) return reader.Fail("messages", where + ".role must be a string");
    if (*role != "system" && *role != "developer" && *role != "user" && *role != "assistant") {
      return reader.Fail("messages", absl::StrCat(where, ".role is ", Quoted(role->get_ref<const std::string&>()),
                                                  "; this server knows system, developer, user and assistant"));
    }
    for (const char* unbuilt : {"tool_calls", "function_call", "audio"}) {
      const Json* value = FindMember(message, unbuilt);
      if (value != nullptr && !value->empty()) {
        return reader.Fail("messages", absl::StrCat(where, ": this server does not support ", unbuilt));
      }
    }
    const Json* content = FindMember(message, "content");
    if (content == nullptr) return reader.Fail("messages", where + ".content is missing");
    ChatMessage& read = chat.messages.emplace_back();
    read.role = role->get<std::string>();
    ReadContent(reader, *content, where + ".content", read.content);
  }
  out.prompt = std::move(chat);
}

void ReadStop(BodyReader& reader, GenerationRequest& out) {
  if (const Json* stop = reader.Find("stop")) {
    if (stop->is_string()) {
      out.stop.push_back(stop->get<std::string>());
    } else if (stop->is_array()) {
      for (const Json& one : *stop) {
        if (!one.is_string()) return reader.Fail("stop", "stop must be a string or an array of strings");
        out.stop.push_back(one.get<std::string>());
      }
    } else {
      reader.Fail("stop", "stop must be a string or an array of strings");
    }
  }
  if (const Json* ids = reader.Find("stop_token_ids")) {
    if (!ids->is_array()) return reader.Fail("stop_token_ids", "stop_token_ids must be an array of token ids");
    out.stop_token_ids = reader.TokenIds("stop_token_ids", *ids);
  }
}

void ReadLogitBias(BodyReader& reader, GenerationRequest& out) {
  const Json* bias = reader.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) return reader.Fail("logit_bias", "logit_bias must be an object of token ids and numbers");
  for (const auto& [key, value] : bias->items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || !value.is_number()) {
      return reader.Fail("logit_bias",
                         absl::StrCat("logit_bias must map token ids to numbers; ", Quoted(key), " does not"));
    }
    out.logit_bias.emplace_back(id, value.get<float>());
  }
}

void ReadLogprobs(OpenAiKind kind, BodyReader& reader, GenerationRequest& out) {
  if (kind == OpenAiKind::kCompletion) {
    out.logprobs = reader.Int("logprobs");
    return;
  }
  const bool wanted = reader.Bool("logprobs");
  const std::optional<int64_t> top = reader.Int("top_logprobs");
  if (top && !wanted && *top != 0) return reader.Fail("top_logprobs", "top_logprobs needs logprobs: true");
  if (top && (*top < 0 || *top > kMaxTopLogprobs)) {
    return reader.Fail("top_logprobs", absl::StrCat("top_logprobs must be from 0 to ", kMaxTopLogprobs, ", is ", *top));
  }
  if (wanted) out.logprobs = top.value_or(0);
}

void ReadMaxTokens(OpenAiKind kind, BodyReader& reader, GenerationRequest& out) {
  out.max_tokens = reader.Int("max_tokens");
  if (kind == OpenAiKind::kCompletion) return;
  const std::optional<int64_t> newer = reader.Int("max_completion_tokens");
  if (!newer) return;
  if (out.max_tokens && *out.max_tokens != *newer) {
    return reader.Fail("max_completion_tokens", "max_tokens and max_completion_tokens differ");
  }
  if (*newer < 1) {
    return reader.Fail("max_completion_tokens", absl::StrCat("max_completion_tokens must be at least 1, is ", *newer));
  }
  out.max_tokens = newer;
}

void ReadSeed(BodyReader& reader, GenerationRequest& out) {
  const Json* seed = reader.Find("seed");
  if (seed == nullptr) return;
  if (!seed->is_number_integer()) return reader.Fail("seed", "seed must be an integer");
  // The bits of a negative one are a seed like any other.
  out.seed = seed->is_number_unsigned() ? seed->get<uint64_t>() : static_cast<uint64_t>(seed->get<int64_t>());
}

}  // namespace

absl::StatusOr<OpenAiCall> ParseOpenAiCall(OpenAiKind kind, std::string_view body, std::string_view domain_header) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  BodyReader reader(*json);
  RefuseUnbuilt(reader);
  OpenAiCall call;
  call.kind = kind;
  GenerationRequest& request = call.request;
  request.model = reader.String("model");
  request.domain_wishes = {{.source = "domain", .domain = reader.String("domain")},
                           {.source = "x-scion-domain", .domain = std::string(domain_header)}};
  if (kind == OpenAiKind::kCompletion) {
    ReadPrompt(reader, request);
  } else {
    ReadMessages(reader, request);
  }
  ReadMaxTokens(kind, reader, request);
  request.temperature = reader.Number("temperature");
  request.top_p = reader.Number("top_p");
  request.top_k = reader.Int("top_k");
  ReadSeed(reader, request);
  ReadLogitBias(reader, request);
  ReadStop(reader, request);
  request.ignore_eos = reader.Bool("ignore_eos");
  request.cache_salt = reader.String("cache_salt");
  ReadLogprobs(kind, reader, request);
  call.stream = reader.Bool("stream");
  call.return_token_ids = reader.Bool("return_token_ids");
  if (const Json* options = reader.Find("stream_options")) {
    if (!options->is_object()) {
      reader.Fail("stream_options", "stream_options must be an object");
    } else if (!call.stream) {
      reader.Fail("stream_options", "stream_options needs stream: true");
    } else {
      BodyReader nested(*options);
      call.include_usage = nested.Bool("include_usage");
      if (!nested.status().ok()) reader.Fail("stream_options", std::string(nested.status().message()));
    }
  }
  if (!reader.status().ok()) return reader.status();
  return call;
}

}  // namespace scion
