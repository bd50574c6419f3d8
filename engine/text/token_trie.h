// Finds added tokens in text: of all that begin at the leftmost place, the longest.
//
// A look costs at most the longest token's bytes per byte of text. Immutable once filled.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace scion {

class TokenTrie {
 public:
  TokenTrie() : token_of_node_(1, kNoToken) {}

  struct Match {
    size_t begin;
    size_t length;
    int32_t id;
  };

  // `text` is not empty.
  void Add(std::string_view text, int32_t id);
  bool empty() const { return token_of_node_.size() == 1; }
  // The first match at or after `from`; false if there is none.
  bool Find(std::string_view text, size_t from, Match& match) const;

 private:
  static constexpr int32_t kNoToken = -1;
  std::vector<int32_t> token_of_node_;
  bool begins_[256] = {};
  absl::flat_hash_map<uint64_t, uint32_t> children_;  // node << 8 | byte
};

// Calls on_text and on_token for what lies between the trie's tokens, and for the tokens, in order.
template <typename OnText, typename OnToken>
void CutOutTokens(const TokenTrie& trie, std::string_view text, OnText on_text, OnToken on_token) {
  size_t position = 0;
  TokenTrie::Match match;
  while (trie.Find(text, position, match)) {
    if (match.begin > position) on_text(text.substr(position, match.begin - position));
    on_token(match.id);
    position = match.begin + match.length;
  }
  if (position < text.size()) on_text(text.substr(position));
}

}  // namespace scion
