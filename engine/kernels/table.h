// Makes a tier's table out of the kernel texts. Included by a tier's source file, after a simd_*.h.
#pragma once

#include "engine/kernels/attention.h"
#include "engine/kernels/dots.h"
#include "engine/kernels/matmul.h"
#include "engine/kernels/row_ops.h"
#include "engine/kernels/tier_tables.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

// BDot: the tier's dot policy for bf16 weights.
template <class BDot>
constexpr KernelTable MakeTable(Tier tier) {
  return {.tier = tier,
          .activation_form = ActivationFormOf<BDot>,
          .activation_row_bytes = ActivationRowBytes,
          .prepare_activations = PrepareActivations,
          .matmul = MatMul<BDot>,
          .matmul_swiglu = MatMulSwiglu<BDot>,
          .rms_norm = RmsNorm,
          .add_scaled = AddScaled,
          .rope = Rope,
          .write_kv = WriteKv,
          .attend = Attend<BDot>,
          .log_sum_exp = LogSumExp,
          .argmax = Argmax};
}

}  // namespace
}  // namespace scion::kernels
