#include "tests/bench/machine_limits.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "engine/base/aligned_buffer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace scion::bench {
namespace {

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr size_t kBufferBytes = size_t{1} << 30;
constexpr int64_t kPeakRounds = 4'000'000;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t SumAvx512(const std::byte* p, size_t bytes) {
  // Four streams: one alone does not keep enough cache lines in flight.
  __m512i sum[4] = {};
  const size_t quarter = bytes / 4;
  for (size_t i = 0; i < quarter; i += 128) {
    for (size_t j = 0; j < 4; ++j) {
      const std::byte* at = p + j * quarter + i;
      sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(at));
      sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(at + 64));
    }
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3])));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] + lanes[4] + lanes[5] + lanes[6] + lanes[7];
}

__attribute__((target("avx2"))) uint64_t SumAvx2(const std::byte* p, size_t bytes) {
  __m256i sum[4] = {};
  const size_t quarter = bytes / 4;
  for (size_t i = 0; i < quarter; i += 64) {
    for (size_t j = 0; j < 4; ++j) {
      const __m256i* at = reinterpret_cast<const __m256i*>(p + j * quarter + i);
      sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(at));
      sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(at + 1));
    }
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes),
                     _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3])));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// 12 independent accumulators of 16 registers (24 of 32) hide the latency.
#define SCION_EACH_OF_12(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define SCION_FMA_AVX2(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n"
#define SCION_INT8_AVX2(n) "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\nvpaddw %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
#define SCION_CLOBBERS_AVX2 \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13"

__attribute__((target("avx2,fma"))) void FmaRoundsAvx2() {
  for (int64_t i = 0; i < kPeakRounds; ++i) __asm__ volatile(SCION_EACH_OF_12(SCION_FMA_AVX2)::: SCION_CLOBBERS_AVX2);
}
__attribute__((target("avx2"))) void Int8RoundsAvx2() {
  for (int64_t i = 0; i < kPeakRounds; ++i) __asm__ volatile(SCION_EACH_OF_12(SCION_INT8_AVX2)::: SCION_CLOBBERS_AVX2);
}

#define SCION_EACH(op)                                                                                                \
  op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15) op(16) op(17) \
      op(18) op(19) op(20) op(21) op(22) op(23)
#define SCION_FMA(n) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define SCION_DOT(n) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define SCION_INT8(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n"
#define SCION_CLOBBERS                                                                                                \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23"

__attribute__((target("avx512f"))) void FmaRounds() {
  for (int64_t i = 0; i < kPeakRounds; ++i) __asm__ volatile(SCION_EACH(SCION_FMA)::: SCION_CLOBBERS);
}
__attribute__((target("avx512f"))) void DotRounds() {
  for (int64_t i = 0; i < kPeakRounds; ++i) __asm__ volatile(SCION_EACH(SCION_DOT)::: SCION_CLOBBERS);
}
__attribute__((target("avx512f"))) void Int8Rounds() {
  for (int64_t i = 0; i < kPeakRounds; ++i) __asm__ volatile(SCION_EACH(SCION_INT8)::: SCION_CLOBBERS);
}
#endif

uint64_t SumPortable(const std::byte* p, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i + 64 <= bytes; i += 64) {
    uint64_t words[8];
    std::memcpy(words, p + i, 64);
    for (int j = 0; j < 8; ++j) sum[j] += words[j];
  }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

uint64_t Sum(const std::byte* p, size_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return SumAvx512(p, bytes);
  if (__builtin_cpu_supports("avx2")) return SumAvx2(p, bytes);
#endif
  return SumPortable(p, bytes);
}

volatile uint64_t sink;

// Independent multiply-adds without hand-written instructions: what the compiler makes of them.
void PortableRounds() {
  float acc[64] = {};
  for (int64_t i = 0; i < kPeakRounds; ++i) {
    for (int j = 0; j < 64; ++j) acc[j] = acc[j] * 0.999f + static_cast<float>(j);
  }
  sink = static_cast<uint64_t>(acc[7]);
}

struct Rounds {
  void (*run)();
  double operations;  // of one round
};

Rounds RoundsOf(kernels::Tier tier, bool blocked_weights) {
#if defined(__x86_64__)
  switch (tier) {
    case kernels::Tier::kPortable:
      if (__builtin_cpu_supports("avx512f")) return {FmaRounds, 24 * 32};
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {FmaRoundsAvx2, 12 * 16};
      break;
    case kernels::Tier::kAvx2:
      return blocked_weights ? Rounds{Int8RoundsAvx2, 12 * 64} : Rounds{FmaRoundsAvx2, 12 * 16};
    case kernels::Tier::kAvx512:
      return {FmaRounds, 24 * 32};
    case kernels::Tier::kAvx512Vnni:
      return blocked_weights ? Rounds{Int8Rounds, 24 * 128} : Rounds{FmaRounds, 24 * 32};
    case kernels::Tier::kAvx512Bf16:
      return blocked_weights ? Rounds{Int8Rounds, 24 * 128} : Rounds{DotRounds, 24 * 64};
  }
#endif
  static_cast<void>(tier);
  static_cast<void>(blocked_weights);
  return {PortableRounds, 64 * 2};
}

}  // namespace

double ReadBandwidth(ThreadPool& pool) {
  static AlignedBuffer* buffer = [] {
    auto* made = new AlignedBuffer(*AlignedBuffer::Create(kBufferBytes, "the bandwidth measurement"));
    std::memset(made->data(), 1, made->size());
    return made;
  }();
  const int threads = pool.num_threads();
  const size_t part = kBufferBytes / static_cast<size_t>(threads) / 4096 * 4096;
  double best = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const double begin = Seconds();
    pool.ParallelFor(threads,
                     [&](int task, int) { sink = Sum(buffer->data() + static_cast<size_t>(task) * part, part); });
    best = std::max(best, static_cast<double>(part) * threads / (Seconds() - begin));
  }
  return best;
}

double PeakFlops(ThreadPool& pool, kernels::Tier tier, bool blocked_weights) {
  const int threads = pool.num_threads();
  const Rounds rounds = RoundsOf(tier, blocked_weights);
  double best = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const double begin = Seconds();
    pool.ParallelFor(threads, [&](int, int) { rounds.run(); });
    best = std::max(best, rounds.operations * static_cast<double>(kPeakRounds) * threads / (Seconds() - begin));
  }
  return best;
}

}  // namespace scion::bench
