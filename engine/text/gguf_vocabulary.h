// What a GGUF file says of its tokenizer, as it is in the file: checked lengths, nothing interpreted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace scion {

struct GgufVocabulary {
  std::string model, pre;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
  std::optional<int32_t> bos_token_id, eos_token_id, unknown_token_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
  std::optional<std::string> chat_template;
};

}  // namespace scion
