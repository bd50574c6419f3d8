// The chat templates that models ship, letter by letter; chat_template.cc renders what they say.
#pragma once

#include <string_view>

namespace scion {

// ChatML without a default system message; the newline written as an escape, and as itself.
extern const std::string_view kChatMlEscapedTemplate;
extern const std::string_view kChatMlTemplate;
extern const std::string_view kSmolLm2Template;  // SmolLM2-Instruct
extern const std::string_view kQwen2Template;    // Qwen2-Instruct
extern const std::string_view kQwen25Template;   // Qwen2.5-Instruct
extern const std::string_view kLlama2Template;   // Llama-2-chat
extern const std::string_view kLlama3Template;   // Meta-Llama-3-Instruct
// Its first release, which always ends with the generation prompt.
extern const std::string_view kLlama3FirstTemplate;

}  // namespace scion
