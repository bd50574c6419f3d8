// Tokenizers and golden files for the tests of engine/text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace scion::text_test {

using Json = nlohmann::json;

std::string ReadFile(const std::filesystem::path& path);
// tests/golden/tokenizer/NAME
Json ReadGolden(std::string_view name);

// "demo", or a style that make_tokenizer_golden.py trained.
std::unique_ptr<Tokenizer> LoadTokenizer(std::string_view style);
inline constexpr std::string_view kStyles[] = {"demo", "gpt2", "llama3", "qwen2", "prefix_space"};

// A sound tokenizer.json: the 256 bytes (id = byte), "ab" = 256, "abc" = 257, and the special tokens "<s>" = 258 and
// "</s>" = 259.
Json SmallTokenizer();

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            Tokenizer::EncodeOptions options = {.parse_special = true, .add_special = false});

}  // namespace scion::text_test
