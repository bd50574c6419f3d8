#include "server/openai_response.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/text/utf8.h"
#include "server/request_error.h"

namespace scion {
namespace {

// Members in the order in which they are written.
using OrderedJson = nlohmann::ordered_json;

std::string Dump(const OrderedJson& json) { return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

std::string_view TokenBytes(const Tokenizer* tokenizer, int32_t id) {
  return tokenizer == nullptr ? std::string_view() : tokenizer->TokenBytes(id);
}

// OpenAI's way to name a token that is no valid UTF-8 by itself; such names stay different from one another.
std::string TokenName(const Tokenizer* tokenizer, int32_t id) {
  if (tokenizer == nullptr) return absl::StrCat("token_id:", id);
  const std::string_view bytes = tokenizer->TokenBytes(id);
  if (ValidUtf8Prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string name = "bytes:";
  for (unsigned char c : bytes) absl::StrAppendFormat(&name, "\\x%02x", c);
  return name;
}

OrderedJson CompletionLogprobs(const Tokenizer* tokenizer, const std::vector<TextToken>& tokens) {
  OrderedJson out = {{"tokens", OrderedJson::array()},
                     {"token_logprobs", OrderedJson::array()},
                     {"top_logprobs", OrderedJson::array()},
                     {"text_offset", OrderedJson::array()}};
  for (const TextToken& token : tokens) {
    out["tokens"].push_back(TokenName(tokenizer, token.id));
    out["token_logprobs"].push_back(token.logprob ? OrderedJson(*token.logprob) : OrderedJson());
    OrderedJson top = OrderedJson::object();
    for (const TokenLogprob& one : token.top) top[TokenName(tokenizer, one.token_id)] = one.logprob;
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(token.text_offset);
  }
  return out;
}

OrderedJson ChatLogprob(const Tokenizer* tokenizer, int32_t id, std::optional<float> logprob) {
  const std::string_view bytes = TokenBytes(tokenizer, id);
  OrderedJson byte_values = OrderedJson::array();
  for (unsigned char c : bytes) byte_values.push_back(c);
  return {{"token", std::string(bytes)},
          {"logprob", logprob ? OrderedJson(*logprob) : OrderedJson()},
          {"bytes", std::move(byte_values)}};
}

OrderedJson ChatLogprobs(const Tokenizer* tokenizer, const std::vector<TextToken>& tokens) {
  OrderedJson content = OrderedJson::array();
  for (const TextToken& token : tokens) {
    OrderedJson one = ChatLogprob(tokenizer, token.id, token.logprob);
    one["top_logprobs"] = OrderedJson::array();
    for (const TokenLogprob& top : token.top) {
      one["top_logprobs"].push_back(ChatLogprob(tokenizer, top.token_id, top.logprob));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

OrderedJson LogprobsJson(const OpenAiResponse::Options& options, const std::vector<TextToken>& tokens) {
  if (!options.logprobs) return nullptr;
  return options.kind == OpenAiKind::kChat ? ChatLogprobs(options.tokenizer, tokens)
                                           : CompletionLogprobs(options.tokenizer, tokens);
}

OrderedJson TokenIds(const std::vector<TextToken>& tokens) {
  OrderedJson ids = OrderedJson::array();
  for (const TextToken& token : tokens) ids.push_back(token.id);
  return ids;
}

OrderedJson UsageJson(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_prompt_tokens}}}};
}

const char* FinishReasonName(TextFinish::Reason reason) {
  return reason == TextFinish::Reason::kLength ? "length" : "stop";
}

OrderedJson Envelope(const OpenAiResponse::Options& options, const char* object, OrderedJson choices) {
  return {{"id", options.id},
          {"object", object},
          {"created", options.created},
          {"model", options.model},
          {"choices", std::move(choices)}};
}

std::string SseEvent(const OrderedJson& data) { return absl::StrCat("data: ", Dump(data), "\n\n"); }

}  // namespace

std::string OpenAiResponse::Whole(const TextChunk& answer) const {
  const bool is_chat = options_.kind == OpenAiKind::kChat;
  OrderedJson choice = {{"index", 0}};
  if (is_chat) {
    choice["message"] = {{"role", "assistant"}, {"content", answer.text}, {"refusal", nullptr}};
  } else {
    choice["text"] = answer.text;
  }
  choice["logprobs"] = LogprobsJson(options_, answer.tokens);
  choice["finish_reason"] = FinishReasonName(answer.finish->reason);
  if (options_.return_token_ids) choice["token_ids"] = TokenIds(answer.tokens);
  OrderedJson out =
      Envelope(options_, is_chat ? "chat.completion" : "text_completion", OrderedJson::array({std::move(choice)}));
  out["usage"] = UsageJson(answer.finish->usage);
  return Dump(out);
}

std::string OpenAiResponse::Events(const TextChunk& chunk) {
  const bool is_chat = options_.kind == OpenAiKind::kChat;
  const char* const object = is_chat ? "chat.completion.chunk" : "text_completion";
  std::string out;
  auto add = [&](OrderedJson choices, OrderedJson usage) {
    OrderedJson event = Envelope(options_, object, std::move(choices));
    if (options_.include_usage) event["usage"] = std::move(usage);
    out += SseEvent(event);
  };
  auto add_choice = [&](const std::string& text, const std::vector<TextToken>& tokens, OrderedJson delta,
                        OrderedJson finish_reason) {
    OrderedJson choice = {{"index", 0}};
    if (is_chat) {
      choice["delta"] = std::move(delta);
    } else {
      choice["text"] = text;
    }
    choice["logprobs"] = tokens.empty() ? OrderedJson() : LogprobsJson(options_, tokens);
    choice["finish_reason"] = std::move(finish_reason);
    if (options_.return_token_ids) choice["token_ids"] = TokenIds(tokens);
    add(OrderedJson::array({std::move(choice)}), nullptr);
  };

  if (is_chat && !has_begun_) add_choice("", {}, {{"role", "assistant"}, {"content", ""}}, nullptr);
  has_begun_ = true;
  const bool shows_tokens = options_.logprobs || options_.return_token_ids;
  if (!chunk.text.empty() || (shows_tokens && !chunk.tokens.empty())) {
    add_choice(chunk.text, chunk.tokens, {{"content", chunk.text}}, nullptr);
  }
  if (!chunk.finish) return out;
  if (chunk.finish->reason == TextFinish::Reason::kError) {
    return absl::StrCat(out, "data: ", OpenAiErrorBody(chunk.finish->status), "\n\n");
  }
  add_choice("", {}, OrderedJson::object(), FinishReasonName(chunk.finish->reason));
  if (options_.include_usage) add(OrderedJson::array(), UsageJson(chunk.finish->usage));
  return out + "data: [DONE]\n\n";
}

}  // namespace scion
