// Random operands, packed matrices, and the list of kernel tables that this machine can run.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/base/aligned_buffer.h"
#include "engine/base/dtype.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/tier_tables.h"

namespace scion::kernels {

struct NamedTable {
  std::string name;
  const KernelTable* table;
  bool bf16_activations;  // with bf16 weights
  bool fused;             // multiply-add has one rounding
};
inline void PrintTo(const NamedTable& t, std::ostream* os) { *os << t.name; }

// Every supported tier, and the avx512bf16 tier with its instruction emulated.
inline std::vector<NamedTable> AllTables() {
  std::vector<NamedTable> tables;
  for (Tier t : SupportedTiers()) {
    tables.push_back({std::string(TierName(t)), &GetKernels(t), t == Tier::kAvx512Bf16, t != Tier::kPortable});
  }
#if defined(__x86_64__)
  if (SupportedTiers().back() >= Tier::kAvx512)
    tables.push_back({"avx512bf16_emulated", &kEmulatedBf16Table, true, true});
#endif
  return tables;
}

// Normally distributed; if asked for, rounded to what both bf16 and fp16 hold.
inline std::vector<float> RandomFloats(size_t n, uint32_t seed, bool sixteen_bits = false) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) {
    v = normal(generator);
    if (sixteen_bits) v = F16ToF32(F32ToF16(Bf16ToF32(F32ToBf16(v))));
  }
  return x;
}

inline std::vector<float> RoundedToBf16(std::vector<float> x) {
  for (float& v : x) v = Bf16ToF32(F32ToBf16(v));
  return x;
}

inline AlignedBuffer MakeBuffer(size_t bytes) { return AlignedBuffer::Create(bytes, "a test").value(); }

// A packed matrix that owns its memory.
struct OwnedMatrix {
  AlignedBuffer buffer;
  PackedMatrix matrix;
};

inline OwnedMatrix Pack(const std::vector<float>& w, int out_features, int in_features, WeightType type) {
  OwnedMatrix m;
  m.buffer = MakeBuffer(PackedBytes(type, out_features, in_features));
  for (int p = 0; p < NumPanels(out_features); ++p) {
    const int rows = std::min(kPanelWidth, out_features - p * kPanelWidth);
    PackPanel(DType::kF32,
              reinterpret_cast<const std::byte*>(w.data() + static_cast<ptrdiff_t>(p) * kPanelWidth * in_features),
              rows, in_features, type, m.buffer.data() + static_cast<size_t>(p) * PackedPanelBytes(type, in_features));
  }
  m.matrix = {m.buffer.data(), out_features, in_features, type};
  return m;
}

inline bool SameBytes(const void* a, const void* b, size_t bytes) { return std::memcmp(a, b, bytes) == 0; }

// x w^T of prepared rows. The same bits whether the weights are read past the caches or not.
inline std::vector<float> MatMulOf(const KernelTable& k, PackedMatrix w, const std::byte* activations, int rows) {
  std::vector<float> y[2];
  for (bool past_caches : {false, true}) {
    w.past_caches = past_caches;
    y[past_caches].resize(static_cast<size_t>(rows) * static_cast<size_t>(w.out_features));
    k.matmul(w, activations, rows, 0, NumPanels(w.out_features), y[past_caches].data(),
             static_cast<size_t>(w.out_features), StoreTo::kCache);
  }
  EXPECT_TRUE(SameBytes(y[0].data(), y[1].data(), y[0].size() * sizeof(float))) << "rows " << rows;
  return y[1];
}

// silu(x gate^T) * (x up^T) of panels [begin, end) as fp32, other columns -77: what matmul_swiglu gives for a matrix
// that takes fp32. The same bits whether the weights are read past the caches or not.
inline std::vector<float> Swiglu(const KernelTable& k, PackedMatrix gate, PackedMatrix up, const std::byte* activations,
                                 int rows, int begin, int end) {
  const size_t row_bytes = k.activation_row_bytes(ActivationForm::kF32, gate.out_features);
  const AlignedBuffer out = MakeBuffer(static_cast<size_t>(rows) * row_bytes);
  std::vector<float> y[2];
  for (bool past_caches : {false, true}) {
    gate.past_caches = up.past_caches = past_caches;
    for (size_t i = 0; i < out.size() / sizeof(float); ++i) out.as<float>()[i] = -77.0f;
    k.matmul_swiglu(gate, up, activations, rows, begin, end, ActivationForm::kF32, out.data());
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      const float* row = reinterpret_cast<const float*>(out.data() + r * row_bytes);
      y[past_caches].insert(y[past_caches].end(), row, row + gate.out_features);
    }
  }
  EXPECT_TRUE(SameBytes(y[0].data(), y[1].data(), y[0].size() * sizeof(float))) << "rows " << rows;
  return y[1];
}

constexpr double kF32Epsilon = 0x1p-24;  // half a unit in the last place, relative

}  // namespace scion::kernels
