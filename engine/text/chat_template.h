// From chat messages to the tokens of a prompt.
//
// A template is known by its text, letter by letter (but for one newline at its end, which Jinja drops); what is known
// is rendered as Jinja renders it, with the generation prompt, without tools. The text of special tokens is ordinary
// text inside a message; only the template's own markers are special.
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

// The text of a `chat_template` that declares plain joining: the contents of the messages, one newline between two,
// roles left out; for base models.
inline constexpr std::string_view kPlainJoiningTemplate =
    R"({% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %})";

class ChatTemplate {
 public:
  // No template means plain joining. Unimplemented for a template that is not known; the message names those that are.
  static absl::StatusOr<ChatTemplate> Create(const Tokenizer& tokenizer);

  // The prompt's tokens. A template says itself where a BOS goes; plain joining leaves that to the tokenizer.
  // InvalidArgument if there are no messages, if a role is none of system, developer (which is rendered as system),
  // user and assistant, or if the roles come in an order that the template refuses.
  absl::StatusOr<std::vector<int32_t>> Render(std::span<const ChatMessage> messages, const Tokenizer& tokenizer) const;

 private:
  struct Known;
  static const std::vector<Known>& AllKnown();

  explicit ChatTemplate(const Known* known) : known_(known) {}

  const Known* known_;  // never null; lives as long as the program
};

}  // namespace scion
