// What the machine can do at most: reading memory, and multiply-adds of an instruction tier.
#pragma once

#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"

namespace scion::bench {

// Bytes per second that all threads together read from a buffer far larger than the caches; best of three passes.
double ReadBandwidth(ThreadPool& pool);

// Operations per second (a multiply-add is two) of all threads together, registers only: fp32 FMA for portable (the
// machine's best), avx2 and avx512, bf16 dot products for avx512bf16 - or, on blocked weights, int8 dot products where
// the tier has them (avx2: vpmaddubsw and the addition of its result); best of three passes.
double PeakFlops(ThreadPool& pool, kernels::Tier tier, bool blocked_weights = false);

}  // namespace scion::bench
