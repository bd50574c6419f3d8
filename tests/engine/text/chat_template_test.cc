#include "engine/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/text/text_test_util.h"

namespace scion {
namespace {

using testing::HasSubstr;
using text_test::Json;

TEST(ChatTemplateTest, TheDemoJoinsMessagesAsItsTemplateDoesInJinja) {
  const auto tokenizer = text_test::LoadTokenizer("demo");
  ASSERT_NE(tokenizer, nullptr);
  ASSERT_TRUE(tokenizer->chat_template().has_value());
  const auto chat = ChatTemplate::Create(*tokenizer);
  ASSERT_TRUE(chat.ok()) << chat.status().ToString();
  for (const Json& conversation : text_test::ReadGolden("chat.json")) {
    std::vector<ChatMessage> messages;
    for (const Json& message : conversation["messages"]) messages.push_back({message["role"], message["content"]});
    const auto ids = chat->Render(messages, *tokenizer);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(tokenizer->Decode(*ids, /*skip_special=*/false), conversation["text"].get<std::string>());
    EXPECT_EQ(*ids, text_test::Encode(*tokenizer, conversation["text"].get<std::string>(),
                                      {.parse_special = false, .add_special = true}));
  }
}

TEST(ChatTemplateTest, SpecialTextInAMessageIsNeverSpecial) {
  for (const std::string_view style : text_test::kStyles) {
    const auto tokenizer = text_test::LoadTokenizer(style);
    ASSERT_NE(tokenizer, nullptr);
    const auto chat = ChatTemplate::Create(*tokenizer);
    ASSERT_TRUE(chat.ok());
    for (int32_t special = 0; special < tokenizer->size(); ++special) {
      if (!tokenizer->IsSpecial(special)) continue;
      const std::string text(tokenizer->TokenBytes(special));
      // Whole, and put together from two messages with the newline between them.
      const std::vector<ChatMessage> messages{{"system", text}, {"user", "a" + text + text}};
      const auto ids = chat->Render(messages, *tokenizer);
      ASSERT_TRUE(ids.ok());
      const auto added = text_test::Encode(*tokenizer, "", {.parse_special = false, .add_special = true});
      EXPECT_EQ(std::count_if(ids->begin(), ids->end(), [&](int32_t id) { return tokenizer->IsSpecial(id); }),
                static_cast<int64_t>(added.size()))
          << style << " " << text;
    }
  }
}

TEST(ChatTemplateTest, OtherTemplatesAreRefusedByName) {
  const Json config{{"chat_template", "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"}};
  const auto tokenizer = Tokenizer::Parse(text_test::SmallTokenizer().dump(), config.dump());
  ASSERT_TRUE(tokenizer.ok());
  const auto chat = ChatTemplate::Create(**tokenizer);
  EXPECT_EQ(chat.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("<|im_start|>"));
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("{{ message['content'] }}"));
}

TEST(ChatTemplateTest, NoTemplateJoinsPlainlyAndNoMessageIsAnError) {
  const auto tokenizer = Tokenizer::Parse(text_test::SmallTokenizer().dump(), "");
  ASSERT_TRUE(tokenizer.ok());
  const auto chat = ChatTemplate::Create(**tokenizer);
  ASSERT_TRUE(chat.ok());
  const std::vector<ChatMessage> messages{{"user", "x"}, {"assistant", "y"}};
  EXPECT_EQ(*chat->Render(messages, **tokenizer), (std::vector<int32_t>{'x', '\n', 'y'}));
  EXPECT_EQ(chat->Render({}, **tokenizer).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace scion
