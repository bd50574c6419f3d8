// What model a GGUF file holds, from its metadata: architectures "llama" (dense, or with experts as in Mixtral) and
// "qwen3moe".
#pragma once

#include "absl/status/statusor.h"
#include "engine/model/gguf.h"
#include "engine/model/model_spec.h"

namespace scion {

// model_type is "llama" or "qwen3_moe". The size of the vocabulary is the number of rows of token_embd.weight, with
// which {architecture}.vocab_size and the tokenizer must agree; the embedding is tied where there is no output.weight.
// Errors name file and key: InvalidArgument for values that make no sense, Unimplemented for an architecture or feature
// that the engine lacks, DataLoss where parts of the file disagree.
absl::StatusOr<ModelSpec> ParseGgufSpec(const GgufHeader& header);

}  // namespace scion
