// From chat messages to the tokens of a prompt.
//
// Supported is plain joining, for base models: the contents of the messages, one newline between two, roles left out.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace scion {

struct ChatMessage {
  std::string role;
  std::string content;
};

// The text of a `chat_template` that declares plain joining; recognised only letter by letter.
inline constexpr std::string_view kPlainJoiningTemplate =
    R"({% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %})";

class ChatTemplate {
 public:
  // No template means plain joining. Unimplemented for any template but the above.
  static absl::StatusOr<ChatTemplate> Create(const Tokenizer& tokenizer);

  // The prompt's tokens, with what the tokenizer adds to a text of its own (BOS). The text of special tokens is
  // ordinary text inside a message. InvalidArgument if there are no messages.
  absl::StatusOr<std::vector<int32_t>> Render(std::span<const ChatMessage> messages, const Tokenizer& tokenizer) const;

 private:
  ChatTemplate() = default;
};

}  // namespace scion
