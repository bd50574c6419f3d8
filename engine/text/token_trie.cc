#include "engine/text/token_trie.h"

namespace scion {
namespace {

uint64_t ChildKey(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

}  // namespace

void TokenTrie::Add(std::string_view text, int32_t id) {
  begins_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto [it, inserted] =
        children_.try_emplace(ChildKey(node, byte), static_cast<uint32_t>(token_of_node_.size()));
    if (inserted) token_of_node_.push_back(kNoToken);
    node = it->second;
  }
  token_of_node_[node] = id;
}

bool TokenTrie::Find(std::string_view text, size_t from, Match& match) const {
  if (empty()) return false;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<uint8_t>(text[begin])]) continue;
    bool found = false;
    uint32_t node = 0;
    for (size_t end = begin; end < text.size(); ++end) {
      const auto it = children_.find(ChildKey(node, text[end]));
      if (it == children_.end()) break;
      node = it->second;
      if (token_of_node_[node] == kNoToken) continue;
      match = {.begin = begin, .length = end + 1 - begin, .id = token_of_node_[node]};
      found = true;
    }
    if (found) return true;
  }
  return false;
}

}  // namespace scion
