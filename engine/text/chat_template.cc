#include "engine/text/chat_template.h"

#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/text/chat_template_texts.h"
#include "engine/text/prompt_builder.h"
#include "engine/text/utf8.h"

namespace scion {
namespace {

using Messages = std::span<const ChatMessage>;
using Ids = std::vector<int32_t>;

// What Python's str.strip takes away, and so Jinja's trim.
bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view Strip(std::string_view text) {
  // Ends of what is left, as far as is known: past the last character that is no space.
  size_t begin = text.size();
  size_t end = 0;
  for (size_t position = 0; position < text.size();) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(position));
    const bool space =
        unit.kind == Utf8Kind::kCharacter && IsPythonSpace(DecodeCharacter(text.substr(position, unit.length)));
    if (!space && end == 0) begin = position;
    position += unit.length;
    if (!space) end = position;
  }
  return end == 0 ? std::string_view() : text.substr(begin, end - begin);
}

// "developer" is a newer name for the same thing.
std::string_view RoleOf(const ChatMessage& message) {
  return message.role == "developer" ? std::string_view("system") : std::string_view(message.role);
}

absl::Status CheckRoles(Messages messages) {
  for (const ChatMessage& message : messages) {
    const std::string_view role = RoleOf(message);
    if (role == "system" || role == "user" || role == "assistant") continue;
    return absl::InvalidArgumentError(
        absl::StrCat("role ", Quoted(message.role), " is none of system, developer, user and assistant"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Ids> JoinPlainly(Messages messages, const Tokenizer& tokenizer) {
  std::string text;
  for (const ChatMessage& message : messages) {
    if (&message != messages.data()) text.push_back('\n');
    text.append(message.content);
  }
  Ids ids;
  tokenizer.Encode(text, {.parse_special = false, .add_special = true}, ids);
  return ids;
}

// `default_system` goes first if no system message does; nothing does if it is empty.
absl::StatusOr<Ids> RenderChatMl(Messages messages, const Tokenizer& tokenizer, std::string_view default_system) {
  SCION_RETURN_IF_ERROR(CheckRoles(messages));
  PromptBuilder prompt(tokenizer);
  const auto add = [&](std::string_view role, std::string_view content) {
    prompt.Marker("<|im_start|>");
    prompt.Text(role);
    prompt.Text("\n");
    prompt.Text(content);
    prompt.Marker("<|im_end|>");
    prompt.Text("\n");
  };
  if (!default_system.empty() && RoleOf(messages[0]) != "system") add("system", default_system);
  for (const ChatMessage& message : messages) add(RoleOf(message), message.content);
  prompt.Marker("<|im_start|>");
  prompt.Text("assistant\n");
  return prompt.Take();
}

absl::StatusOr<Ids> RenderChatMlPlain(Messages messages, const Tokenizer& tokenizer) {
  return RenderChatMl(messages, tokenizer, "");
}

absl::StatusOr<Ids> RenderSmolLm2(Messages messages, const Tokenizer& tokenizer) {
  return RenderChatMl(messages, tokenizer, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
}

absl::StatusOr<Ids> RenderQwen2(Messages messages, const Tokenizer& tokenizer) {
  return RenderChatMl(messages, tokenizer, "You are a helpful assistant");
}

absl::StatusOr<Ids> RenderQwen25(Messages messages, const Tokenizer& tokenizer) {
  return RenderChatMl(messages, tokenizer, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
}

absl::StatusOr<Ids> RenderLlama2(Messages messages, const Tokenizer& tokenizer) {
  SCION_RETURN_IF_ERROR(CheckRoles(messages));
  const ChatMessage* system = RoleOf(messages[0]) == "system" ? &messages[0] : nullptr;
  if (system != nullptr) messages = messages.subspan(1);
  PromptBuilder prompt(tokenizer);
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != expected) {
      return absl::InvalidArgumentError(absl::StrCat("this model's chat template wants roles that alternate user, ",
                                                     "assistant, user and so on, after at most one system message"));
    }
    std::string content = messages[i].content;
    if (i == 0 && system != nullptr) content = "<<SYS>>\n" + system->content + "\n<</SYS>>\n\n" + content;
    if (expected == "user") {
      prompt.Token(tokenizer.bos_token_id());
      prompt.Text("[INST] ");
      prompt.Text(Strip(content));
      prompt.Text(" [/INST]");
    } else {
      prompt.Text(" ");
      prompt.Text(Strip(content));
      prompt.Text(" ");
      prompt.Token(tokenizer.eos_token_id());
    }
  }
  if (messages.empty()) return absl::InvalidArgumentError("this model's chat template wants a user message");
  return prompt.Take();
}

absl::StatusOr<Ids> RenderLlama3(Messages messages, const Tokenizer& tokenizer) {
  SCION_RETURN_IF_ERROR(CheckRoles(messages));
  PromptBuilder prompt(tokenizer);
  const auto begin_message = [&](std::string_view role) {
    prompt.Marker("<|start_header_id|>");
    prompt.Text(role);
    prompt.Marker("<|end_header_id|>");
    prompt.Text("\n\n");
  };
  prompt.Token(tokenizer.bos_token_id());
  for (const ChatMessage& message : messages) {
    begin_message(RoleOf(message));
    prompt.Text(Strip(message.content));
    prompt.Marker("<|eot_id|>");
  }
  begin_message("assistant");
  return prompt.Take();
}

// Jinja drops one newline at the end of a template.
std::string_view WithoutLastNewline(std::string_view text) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

}  // namespace

struct ChatTemplate::Known {
  const char* name;
  std::string_view text;
  absl::StatusOr<Ids> (*render)(Messages messages, const Tokenizer& tokenizer);
};

const std::vector<ChatTemplate::Known>& ChatTemplate::AllKnown() {
  static const std::vector<Known>* const known = new std::vector<Known>{
      {"plain joining", kPlainJoiningTemplate, JoinPlainly},
      {"ChatML", kChatMlTemplate, RenderChatMlPlain},
      {"ChatML (escaped newlines)", kChatMlEscapedTemplate, RenderChatMlPlain},
      {"SmolLM2-Instruct", kSmolLm2Template, RenderSmolLm2},
      {"Qwen2-Instruct", kQwen2Template, RenderQwen2},
      {"Qwen2.5-Instruct", kQwen25Template, RenderQwen25},
      {"Llama-2-chat", kLlama2Template, RenderLlama2},
      {"Meta-Llama-3-Instruct", kLlama3Template, RenderLlama3},
      {"Meta-Llama-3-Instruct (first release)", kLlama3FirstTemplate, RenderLlama3},
  };
  return *known;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Create(const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.chat_template() ? *tokenizer.chat_template() : kPlainJoiningTemplate;
  for (const Known& known : AllKnown()) {
    if (WithoutLastNewline(text) == WithoutLastNewline(known.text)) return ChatTemplate(&known);
  }
  return absl::UnimplementedError(absl::StrCat(
      "this model's chat template is not one of: ",
      absl::StrJoin(AllKnown(), ", ", [](std::string* out, const Known& known) { out->append(known.name); }),
      "; completions work without one. The template is ", Quoted(text)));
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                          const Tokenizer& tokenizer) const {
  if (messages.empty()) return absl::InvalidArgumentError("messages must not be empty");
  return known_->render(messages, tokenizer);
}

}  // namespace scion
