#include "engine/text/chat_template.h"

#include "engine/base/status.h"

namespace scion {

absl::StatusOr<ChatTemplate> ChatTemplate::Create(const Tokenizer& tokenizer) {
  const std::optional<std::string>& text = tokenizer.chat_template();
  if (text && *text != kPlainJoiningTemplate) {
    return absl::UnimplementedError(absl::StrCat("chat_template ", Quoted(*text),
                                                 " is not supported; supported are no template at all and ",
                                                 ToAbsl(kPlainJoiningTemplate)));
  }
  return ChatTemplate();
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                          const Tokenizer& tokenizer) const {
  if (messages.empty()) return absl::InvalidArgumentError("messages must not be empty");
  std::string text;
  for (const ChatMessage& message : messages) {
    if (&message != messages.data()) text.push_back('\n');
    text.append(message.content);
  }
  std::vector<int32_t> ids;
  tokenizer.Encode(text, {.parse_special = false, .add_special = true}, ids);
  return ids;
}

}  // namespace scion
