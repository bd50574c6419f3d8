#include "engine/scheduler/sequence_blocks.h"

#include <optional>
#include <span>

namespace scion {
namespace {

PrefixKey KeyOf(const Sequence& s) {
  // A domain's weights are loaded once so far: there is one generation.
  return {.domain = s.domain, .generation = 0, .tenant = s.tenant};
}

// Tokens at the front that need not be computed if their keys and values are there.
int NumWithoutLogits(const Sequence& s) {
  if (s.wants_prompt_logits && s.num_scored < s.num_prompt_tokens - 1) return s.num_scored;
  return static_cast<int>(s.tokens.size()) - 1;
}

}  // namespace

int SequenceBlocks::Reuse(Sequence* s) {
  if (prefixes_ == nullptr) return 0;
  const int block_tokens = cache_.block_tokens();
  const int before = s->num_computed;
  for (int end = (s->num_stored + 1) * block_tokens; end <= NumWithoutLogits(*s); end += block_tokens) {
    const std::optional<PrefixCache::Content> found =
        prefixes_->Find(KeyOf(*s), s->content,
                        std::span<const int32_t>(s->tokens).subspan(static_cast<size_t>(end - block_tokens),
                                                                    static_cast<size_t>(block_tokens)));
    if (!found) break;
    cache_.Share(found->block);
    const size_t at = static_cast<size_t>(s->num_stored);
    if (at < s->blocks.size()) {
      cache_.Free(s->blocks[at]);
      s->blocks[at] = found->block;
    } else {
      s->blocks.push_back(found->block);
    }
    ++s->num_stored;
    s->content = found->id;
    s->num_computed = end;
  }
  return s->num_computed - before;
}

bool SequenceBlocks::Reserve(Sequence* s, int num_tokens) {
  const size_t wanted = static_cast<size_t>(cache_.blocks_for(num_tokens));
  while (s->blocks.size() < wanted) {
    const std::optional<int32_t> block = cache_.Allocate();
    if (!block) return false;
    if (prefixes_ != nullptr && prefixes_->Forget(*block)) ++evictions_;
    s->blocks.push_back(*block);
  }
  return true;
}

void SequenceBlocks::Store(Sequence* s) {
  if (prefixes_ == nullptr) return;
  const int block_tokens = cache_.block_tokens();
  for (; (s->num_stored + 1) * block_tokens <= s->num_computed; ++s->num_stored) {
    int32_t& block = s->blocks[static_cast<size_t>(s->num_stored)];
    const PrefixCache::Content content =
        prefixes_->Insert(KeyOf(*s), s->content,
                          std::span<const int32_t>(s->tokens).subspan(static_cast<size_t>(s->num_stored * block_tokens),
                                                                      static_cast<size_t>(block_tokens)),
                          block);
    if (content.block != block) {
      cache_.Share(content.block);
      cache_.Free(block);
      block = content.block;
    }
    s->content = content.id;
  }
}

void SequenceBlocks::Release(Sequence* s) {
  // From the end, so that a content goes before those that it comes after: whoever holds a stored block holds all
  // before it, hence nothing in the prefix cache is ever left without its beginning.
  while (!s->blocks.empty()) {
    const int32_t block = s->blocks.back();
    s->blocks.pop_back();
    if (prefixes_ != nullptr && prefixes_->Holds(block)) {
      cache_.FreeKeeping(block);
    } else {
      cache_.Free(block);
    }
  }
  s->num_stored = 0;
  s->content = ContentId::kEmpty;
  s->num_computed = 0;
}

}  // namespace scion
