#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/model.h"

namespace scion {

absl::Status RunPrompt(Model& model, KvCache& cache, int domain, std::span<const int32_t> token_ids,
                       absl::FunctionRef<void(int position, std::span<const float> logits)> consume) {
  const int num_tokens = static_cast<int>(token_ids.size());
  const int context = model.spec().max_position_embeddings;
  if (num_tokens == 0 || num_tokens > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", num_tokens, " tokens in a context of ", context, " positions"));
  }
  std::vector<int32_t> blocks;
  absl::Status status;
  while (static_cast<int>(blocks.size()) < cache.blocks_for(num_tokens) && status.ok()) {
    if (std::optional<int32_t> block = cache.Allocate()) {
      blocks.push_back(*block);
    } else {
      status = absl::ResourceExhaustedError(absl::StrCat("a KV cache of ", cache.num_blocks() * cache.block_tokens(),
                                                         " tokens is too small for ", num_tokens));
    }
  }
  const size_t vocab = static_cast<size_t>(model.spec().vocab_size);
  const int tile = model.options().max_logit_rows;
  std::vector<float> logits(static_cast<size_t>(tile) * vocab);
  std::vector<int32_t> rows;
  for (int position = 0; position < num_tokens && status.ok();) {
    const int count = std::min(num_tokens - position, model.options().max_step_rows);
    rows.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = i;
    const StepChunk chunk{.domain = domain, .row_begin = 0, .num_rows = count, .position = position, .blocks = blocks};
    model.Forward({.token_ids = token_ids.subspan(static_cast<size_t>(position), static_cast<size_t>(count)),
                   .chunks = {&chunk, 1},
                   .logit_rows = rows},
                  cache);
    for (int first = 0; first < count; first += tile) {
      const int n = std::min(tile, count - first);
      model.Logits(first, n, logits.data());
      for (int i = 0; i < n; ++i) {
        consume(position + first + i, std::span(logits).subspan(static_cast<size_t>(i) * vocab, vocab));
      }
    }
    position += count;
  }
  for (int32_t block : blocks) cache.Free(block);
  return status;
}

}  // namespace scion
