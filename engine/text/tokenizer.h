// Text to token ids and back: byte-level BPE from a Hugging Face tokenizer.json or a GGUF file, SentencePiece's BPE
// from a GGUF file.
//
// Any byte sequence can be encoded; decoding what was encoded gives the same bytes back, up to what the model's own
// tokenizer changes (README.md). Thread-safe once loaded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/gguf_vocabulary.h"

namespace scion {

// Where the text of some tokens stands: the space that a tokenizer puts before a text is taken away at its beginning,
// but tokens that go on a prompt's text keep theirs.
enum class TextPart : uint8_t { kBeginning, kContinuation };

class Tokenizer {
 public:
  struct EncodeOptions {
    // Whether the text of special tokens ("<|im_start|>") becomes the special token. True for templates and raw
    // completions, never for message content.
    bool parse_special = true;
    // Whether to add the tokens that the file's own post-processor adds (BOS); never doubles a BOS that is there.
    bool add_special = true;
  };

  // Reads tokenizer.json and, where present, tokenizer_config.json (chat_template, bos/eos). The file is hostile:
  // depth, sizes and ids are bounded and checked. InvalidArgument or Unimplemented name what is wrong.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& directory);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view tokenizer_json,
                                                          std::string_view tokenizer_config_json);
  // The vocabulary inside a GGUF file, as hostile as any; the same errors, the messages begin with "tokenizer.ggml".
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(GgufVocabulary vocabulary);
  virtual ~Tokenizer() = default;

  // Appends to ids.
  virtual void Encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids) const = 0;
  // The bytes of one token: the empty string for ids outside the vocabulary. Special tokens give their text.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // Largest id plus one.
  virtual int32_t size() const = 0;
  virtual std::optional<int32_t> FindSpecial(std::string_view text) const = 0;
  virtual std::optional<int32_t> bos_token_id() const = 0;
  virtual std::optional<int32_t> eos_token_id() const = 0;
  // The file's own chat_template, if any.
  virtual const std::optional<std::string>& chat_template() const = 0;

  // Whether Encode puts a space before text that follows this token, or that a text begins with (nullopt). Decoding
  // takes one space away there.
  virtual bool SpacePrefixAfter(std::optional<int32_t> id) const;

  // Bytes of all ids; invalid UTF-8 is kept as it is.
  std::string Decode(std::span<const int32_t> ids, bool skip_special, TextPart part = TextPart::kBeginning) const;
};

// Turns a stream of tokens into text that is valid UTF-8 at every step: bytes of an unfinished character are held back
// until it is complete; bytes that can't become a character turn into U+FFFD (as Unicode recommends: one per maximal
// ill-formed subsequence). The concatenation of all outputs equals the one-shot decoding of the same part, with
// replacement. The tokens of a stream are generated ones, which go on a prompt, unless it is said otherwise.
class IncrementalDetokenizer {
 public:
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special = true,
                                  TextPart part = TextPart::kContinuation);
  // Appends the text that has become certain to `out`.
  void Push(int32_t id, std::string& out);
  // The end: whatever is held back becomes U+FFFD.
  void Finish(std::string& out);

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool drop_space_;  // the next text's, if it begins with one
  std::string pending_;
};

// Finds stop strings in a stream of text. Text that might be the beginning of a stop string is held back.
class StopStringMatcher {
 public:
  // Empty stop strings are left out.
  explicit StopStringMatcher(std::vector<std::string> stops);
  // Appends the text that is safe to show to `out`; returns true when a stop string was completed: `out` then ends
  // before it, and no more text may be pushed. The match that is completed first in the byte stream wins; of several
  // that end at one byte, the longest. How the text is cut into pushes makes no difference.
  bool Push(std::string_view text, std::string& out);
  // The end without a stop: what was held back is text after all.
  void Finish(std::string& out);
  bool empty() const { return patterns_.empty(); }

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // [i]: the longest proper prefix of text that ends text[0, i)  (Knuth-Morris-Pratt)
    size_t matched;              // bytes of `text` that the stream ends with
  };
  std::vector<Pattern> patterns_;
  std::string held_;
};

}  // namespace scion
