#include "engine/text/gguf_pre_tokenizer.h"

#include <algorithm>
#include <string>

#include "engine/base/status.h"

namespace scion {
namespace {

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S))"
    R"(|\s+)";

constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                     R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                     R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kDeepSeekV3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The cased letters of Unicode's Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee and of some smaller scripts.
constexpr std::string_view kDeepSeekLetters =
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+";
constexpr std::string_view kDeepSeekPunctuation = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+";
constexpr std::string_view kDeepSeekCjk = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";
// The file says \s+$; lines have been cut before, so that the end of a line is the end of the piece.
constexpr std::string_view kSpaceAtEnd = R"(\s+(?!\s|\S))";

struct Family {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;
};

const std::vector<Family>& Families() {
  static const std::vector<Family>* const families = new std::vector<Family>{
      // No model's own: what llama.cpp does with files that name no pre-tokenizer.
      {.names = {"default", ""}, .patterns = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {.names = {"gpt-2", "phi-2"}, .patterns = {kGpt2}},
      {.names = {"olmo", "mpt"}, .patterns = {kGpt2}, .nfc = true},
      {.names = {"smollm", "starcoder", "refact", "codeshell"}, .patterns = {R"(\p{N})", kGpt2}},
      {.names = {"llama-bpe", "llama3", "llama-v3"}, .patterns = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.names = {"qwen2"}, .patterns = {kQwen2}, .nfc = true},
      {.names = {"tekken"}, .patterns = {kTekken}, .ignore_merges = true, .add_bos = true},
      {.names = {"deepseek-llm"},
       .patterns = {R"([\r\n])", kDeepSeekLetters, kDeepSeekPunctuation, kSpaceAtEnd, kDeepSeekCjk, R"(\p{N})"}},
      {.names = {"deepseek-coder"},
       .patterns = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepSeekCjk, R"(\p{N})"}},
      {.names = {"deepseek-v3"},
       .patterns = {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", kDeepSeekV3}},
  };
  return *families;
}

}  // namespace

absl::StatusOr<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name) {
  for (const Family& family : Families()) {
    for (const std::string_view known : family.names) {
      if (known != name) continue;
      GgufPreTokenizer found{
          .steps = {}, .nfc = family.nfc, .ignore_merges = family.ignore_merges, .add_bos = family.add_bos};
      for (const std::string_view pattern : family.patterns) {
        found.steps.push_back({.kind = PreTokenizeStep::Kind::kSplitRegex, .pattern = std::string(pattern)});
      }
      return found;
    }
  }
  return absl::UnimplementedError(absl::StrCat("pre: the pre-tokenizer ", Quoted(name), " is not supported"));
}

std::optional<std::string_view> FindGgufPreTokenizerName(const std::vector<PreTokenizeStep>& steps, bool nfc,
                                                         bool ignore_merges) {
  const auto does_the_same = [](const PreTokenizeStep& step, std::string_view pattern) {
    return step.kind == PreTokenizeStep::Kind::kSplitRegex && step.pattern == pattern;
  };
  const Family* best = nullptr;
  const auto agreement = [&](const Family& f) { return 2 * (f.ignore_merges == ignore_merges) + (f.nfc == nfc); };
  for (const Family& family : Families()) {
    if (!std::ranges::equal(steps, family.patterns, does_the_same)) continue;
    if (best == nullptr || agreement(family) > agreement(*best)) best = &family;
  }
  if (best == nullptr) return std::nullopt;
  return best->names[0];
}

}  // namespace scion
