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
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("this model's chat template is not one of"));
  EXPECT_THAT(std::string(chat.status().message()), HasSubstr("Qwen2.5-Instruct"));
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

struct Shipped {
  const char* file;        // in tests/golden/chat_templates
  const char* vocabulary;  // in tests/golden/gguf
};

constexpr Shipped kShipped[] = {{"chatml", "smollm"},    {"chatml_escaped", "llama-bpe"},
                                {"smollm2", "smollm"},   {"qwen2", "qwen2"},
                                {"qwen25", "qwen2"},     {"llama2", "spm"},
                                {"llama3", "llama-bpe"}, {"llama3_first", "llama-bpe"}};

Json ReadChats() {
  return Json::parse(text_test::ReadFile(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/gguf/chats.json"));
}

std::string TemplateText(const char* file) {
  return text_test::ReadFile(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/chat_templates" /
                             (std::string(file) + ".jinja"));
}

std::vector<ChatMessage> MessagesOf(const Json& conversation) {
  std::vector<ChatMessage> messages;
  for (const Json& message : conversation) messages.push_back({message["role"], message["content"]});
  return messages;
}

class ShippedTemplateTest : public testing::TestWithParam<Shipped> {
 protected:
  std::unique_ptr<Tokenizer> Load(std::string chat_template) const {
    GgufVocabulary vocabulary = text_test::ReadGgufVocabulary(GetParam().vocabulary);
    vocabulary.chat_template = std::move(chat_template);
    return text_test::LoadGguf(std::move(vocabulary));
  }
};

TEST_P(ShippedTemplateTest, RendersAsJinjaDoes) {
  const auto tokenizer = Load(TemplateText(GetParam().file));
  ASSERT_NE(tokenizer, nullptr);
  const auto chat = ChatTemplate::Create(*tokenizer);
  ASSERT_TRUE(chat.ok()) << chat.status().ToString();
  const Json chats = ReadChats();
  const Json& rendered = chats["rendered"][GetParam().file];
  ASSERT_EQ(rendered.size(), chats["conversations"].size());
  int refused = 0;
  int with_special_text = 0;
  for (size_t i = 0; i < rendered.size(); ++i) {
    SCOPED_TRACE(chats["conversations"][i].dump());
    const std::vector<ChatMessage> messages = MessagesOf(chats["conversations"][i]);
    const auto ids = chat->Render(messages, *tokenizer);
    if (!ids.ok()) {
      EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
      // Llama 2's template drops a late system message, and one that stands alone, without a word.
      const bool dropped = messages.back().role == "system" || (messages.size() > 1 && messages[1].role == "system");
      EXPECT_TRUE(rendered[i].is_null() || (dropped && std::string_view(GetParam().file) == "llama2"));
      ++refused;
      continue;
    }
    ASSERT_TRUE(rendered[i].is_string());
    const std::string text = rendered[i];
    EXPECT_EQ(tokenizer->Decode(*ids, /*skip_special=*/false), text);
    bool special_text = false;
    for (const ChatMessage& message : messages) {
      const auto parsed = text_test::Encode(*tokenizer, message.content);
      special_text |= std::any_of(parsed.begin(), parsed.end(), [&](int32_t id) { return tokenizer->IsSpecial(id); });
      special_text |= message.content.find("<|im_") != std::string::npos;  // joined across messages
    }
    with_special_text += special_text;
    // The same tokens as the whole text gives, unless a message holds what reads like a special token.
    if (!special_text) {
      EXPECT_EQ(*ids, text_test::Encode(*tokenizer, text));
    }
  }
  EXPECT_EQ(refused, std::string_view(GetParam().file) == "llama2" ? 4 : 0);
  EXPECT_GE(with_special_text, 2);
}

TEST_P(ShippedTemplateTest, SpecialTextInAMessageIsNeverSpecial) {
  const auto tokenizer = Load(TemplateText(GetParam().file));
  ASSERT_NE(tokenizer, nullptr);
  const auto chat = ChatTemplate::Create(*tokenizer);
  ASSERT_TRUE(chat.ok());
  const auto count = [&](const std::string& system, const std::string& content) {
    const std::vector<ChatMessage> messages{
        {"system", system}, {"user", content}, {"assistant", content}, {"user", "x"}};
    const auto ids = chat->Render(messages, *tokenizer);
    EXPECT_TRUE(ids.ok());
    return std::count_if(ids->begin(), ids->end(), [&](int32_t id) { return tokenizer->IsSpecial(id); });
  };
  const int64_t markers = count("a", "b");
  EXPECT_GE(markers, 3);
  for (int32_t special = 0; special < tokenizer->size(); ++special) {
    if (!tokenizer->IsSpecial(special)) continue;
    const std::string text(tokenizer->TokenBytes(special));
    EXPECT_EQ(count(text, "a" + text + text), markers) << text;
  }
}

TEST_P(ShippedTemplateTest, IsKnownByItsWholeText) {
  const std::string text = TemplateText(GetParam().file);
  const auto known = [&](const std::string& changed) {
    const auto tokenizer = Load(changed);
    return tokenizer != nullptr && ChatTemplate::Create(*tokenizer).ok();
  };
  EXPECT_TRUE(known(text));
  EXPECT_TRUE(known(text.ends_with('\n') ? text.substr(0, text.size() - 1) : text + "\n"));
  EXPECT_FALSE(known(text + " "));
  EXPECT_FALSE(known(" " + text));
  EXPECT_FALSE(known(text + "\n\n"));
  for (size_t i = 0; i < text.size(); i += 29) {
    std::string changed = text;
    changed[i] = changed[i] == 'x' ? 'y' : 'x';
    EXPECT_FALSE(known(changed)) << i;
  }
}

TEST_P(ShippedTemplateTest, UnknownRolesAreRefusedAndDeveloperIsSystem) {
  const auto tokenizer = Load(TemplateText(GetParam().file));
  ASSERT_NE(tokenizer, nullptr);
  const auto chat = ChatTemplate::Create(*tokenizer);
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->Render({}, *tokenizer).status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<ChatMessage> tool{{"user", "x"}, {"tool", "y"}};
  EXPECT_EQ(chat->Render(tool, *tokenizer).status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<ChatMessage> developer{{"developer", "x"}, {"user", "y"}};
  const std::vector<ChatMessage> system{{"system", "x"}, {"user", "y"}};
  EXPECT_EQ(*chat->Render(developer, *tokenizer), *chat->Render(system, *tokenizer));
}

INSTANTIATE_TEST_SUITE_P(Shipped, ShippedTemplateTest, testing::ValuesIn(kShipped),
                         [](const auto& info) { return std::string(info.param.file); });

TEST(ChatTemplateTest, AnUnknownTemplateDoesNotKeepTheModelFromCompleting) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.chat_template = "{{ messages }}";
  const auto tokenizer = text_test::LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(ChatTemplate::Create(*tokenizer).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(text_test::Encode(*tokenizer, "abc"), std::vector<int32_t>{257});
}

TEST(ChatTemplateTest, AMarkerThatIsNoTokenIsText) {
  GgufVocabulary vocabulary = text_test::SmallByteLevelGguf();
  vocabulary.chat_template = TemplateText("chatml");
  const auto tokenizer = text_test::LoadGguf(vocabulary);
  ASSERT_NE(tokenizer, nullptr);
  const auto chat = ChatTemplate::Create(*tokenizer);
  ASSERT_TRUE(chat.ok());
  const std::vector<ChatMessage> messages{{"user", "ab"}};
  EXPECT_EQ(tokenizer->Decode(*chat->Render(messages, *tokenizer), false),
            "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace
}  // namespace scion
