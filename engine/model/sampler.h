// Chooses the next token from a row of logits.
//
// The choice is a function of (logits, parameters, seed, position) alone: nothing that happened to other requests, or
// to this one before, enters it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/kernels/kernels.h"

namespace scion {

struct SamplerParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: all
  float top_p = 1;        // in (0, 1]
  uint64_t seed = 0;
  std::span<const std::pair<int32_t, float>> logit_bias = {};  // ids in [0, vocab_size), each at most once
};

struct Logprob {
  int32_t token_id;
  float logprob;
};

// Scratch of one thread; no call allocates.
class Sampler {
 public:
  Sampler(const kernels::KernelTable& kernels, int vocab_size);

  // logits [vocab_size]: the bias is put on and taken off again. position: of the token that is chosen, counted from
  // the start of the sequence.
  int32_t Sample(std::span<float> logits, const SamplerParams& params, int position);

 private:
  int32_t Choose(std::span<const float> logits, const SamplerParams& params, int position);
  int32_t SampleFromSorted(std::span<const float> logits, const SamplerParams& params, float u);
  // Put the candidates first into candidates_, best first, lower ids first among equals, and what they weigh into
  // weights_. Return how many there are.
  int TakeTopK(std::span<const float> logits, const SamplerParams& params);  // of which top_p may leave fewer
  int TakeTopP(std::span<const float> logits, const SamplerParams& params);

  const kernels::KernelTable& kernels_;
  std::vector<int32_t> candidates_;
  std::vector<float> weights_;
  std::vector<float> unbiased_;
};

// A number in [0, 1), a function of its arguments.
float UniformAt(uint64_t seed, uint64_t position);

// log softmax(logits)[token_id]
float LogprobOf(const kernels::KernelTable& kernels, std::span<const float> logits, int32_t token_id);

// The out.size() most likely tokens, best first, lower ids first among equals. out.size() <= logits.size().
void TopLogprobs(const kernels::KernelTable& kernels, std::span<const float> logits, std::span<Logprob> out);

}  // namespace scion
