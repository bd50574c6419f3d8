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

// The same tokens as a GGUF file of model "gpt2" has them; its pre-tokenizer is "gpt-2".
GgufVocabulary SmallByteLevelGguf();

// Of model "llama": "<unk>" = 0, "<s>" = 1, "</s>" = 2, the 256 bytes from 3 on, and plain tokens from 259 on, which
// text_test_util.cc lists with their scores. The control token "<|x|>" and the user-defined one "<tool>" come last.
GgufVocabulary SmallSentencePieceGguf();

// A vocabulary that make_gguf_golden.py made.
GgufVocabulary ReadGgufVocabulary(std::string_view name);
inline constexpr std::string_view kGgufVocabularies[] = {"smollm", "llama-bpe", "qwen2", "spm", "spm_unknown"};
std::unique_ptr<Tokenizer> LoadGguf(GgufVocabulary vocabulary);

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            Tokenizer::EncodeOptions options = {.parse_special = true, .add_special = false});

}  // namespace scion::text_test
