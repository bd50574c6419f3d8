// The CPU kernels: plain functions on plain memory, gathered in one table per instruction tier.
//
// The rules every kernel keeps (they make batch invariance possible, see the README of this folder):
//   - each output element is reduced in one fixed order, whatever the number of rows in the call, and whichever task or
//     thread runs it; tails are padded with zeros, never computed by another formula;
//   - no kernel allocates; none keeps state.
// Tiers may differ from one another in the last bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/dtype.h"

namespace scion::kernels {

enum class Tier : uint8_t {
  kPortable,    // plain C++, any machine
  kAvx2,        // AVX2, FMA and F16C: bf16 weights widened in registers, blocks by vpmaddubsw
  kAvx512,      // AVX-512 F/BW/VL: bf16 weights widened in registers, fp32 FMA
  kAvx512Vnni,  // and vpdpbusd on blocks of 8-bit and 4-bit codes
  kAvx512Bf16,  // and vdpbf16ps on bf16 weights and bf16 activations
};

std::string_view TierName(Tier tier);  // "portable", "avx2", "avx512", "avx512vnni", "avx512bf16"

// The tiers that this machine can run, slowest first; never empty.
std::span<const Tier> SupportedTiers();

// The fastest supported tier, or the one that the environment variable SCION_CPU_TIER names. InvalidArgument when that
// names no tier, or one that this machine cannot run; the message lists those it can.
absl::StatusOr<Tier> ChooseTier();

// How packed weights lie in memory: three families, plain 16-bit and 32-bit floats, blocks of 8-bit codes and blocks of
// 4-bit codes (Q6_K's with two bits more). Between them they hold every type on disk by value: value = scale * (code -
// offset) + min.
enum class WeightType : uint8_t {
  kBF16,
  kF32,
  kF16,
  kQ8,       // 32 codes of 8 bits, offset 128, fp16 scale: Q8_0, Q5_0
  kQ8Min,    // 32 codes of 8 bits, fp16 scale and min: Q5_1
  kQ8Super,  // the same in eights of one fp16 scale and min, times 6 bits each: Q5_K
  kQ4,       // 32 codes of 4 bits, offset 8, fp16 scale: Q4_0
  kQ4Min,    // 32 codes of 4 bits, fp16 scale and min: Q4_1
  kQ4Super,  // the same in eights of one fp16 scale and min, times 6 bits each: Q4_K
  kQ6,       // 32 codes of 4 and 2 bits, offset 32, fp16 scale, times an int8 for each half: Q6_K
};
constexpr bool IsBlocked(WeightType t) {
  return t != WeightType::kBF16 && t != WeightType::kF32 && t != WeightType::kF16;
}
std::string_view WeightTypeName(WeightType type);  // "bf16", "q8", ...
// The packed type that holds every value of a type on disk; nothing for integers and F64.
std::optional<WeightType> ExactWeightType(DType type);

// What matmul reads of the activations.
enum class ActivationForm : uint8_t {
  kF32,
  kBF16,
  kInt8,  // blocks of 32 codes with one scale, symmetric around 0
};
inline constexpr int kNumActivationForms = 3;

// Where matmul leaves its result.
enum class StoreTo : uint8_t {
  kCache,
  kMemory,  // past the caches, of which it would fill most before anybody reads it
};

// How cached keys and values lie in memory.
enum class KvType : uint8_t {
  kBF16,
  kF16,  // values beyond its range, 65504, are the largest that it has
  kF32,
};
constexpr size_t KvTypeBytes(KvType t) { return t == KvType::kF32 ? 4 : 2; }
inline constexpr KvType kAllKvTypes[] = {KvType::kBF16, KvType::kF16, KvType::kF32};
constexpr std::string_view KvTypeName(KvType t) {
  return t == KvType::kBF16 ? "bf16" : t == KvType::kF16 ? "fp16" : "fp32";
}

// ---- Packed weights ----

// A matrix W [out_features, in_features] is cut into panels of kPanelWidth output features; a panel is contiguous and
// is streamed once, front to back. The last panel and the inner dimension are padded with zeros. The layout
// depends on the weight type, and for kF32 on whether the panel is narrow, not on the tier.
inline constexpr int kPanelWidth = 64;
// A last panel of kF32 with at most so many features, a gate's, has them side by side at the front: one stream, too.
inline constexpr int kNarrowWidth = 16;
constexpr int NumPanels(int out_features) { return (out_features + kPanelWidth - 1) / kPanelWidth; }
size_t PackedPanelBytes(WeightType type, int in_features);
inline size_t PackedBytes(WeightType type, int out_features, int in_features) {
  return static_cast<size_t>(NumPanels(out_features)) * PackedPanelBytes(type, in_features);
}
// Packs one panel. `rows`: row-major source [num_rows, in_features] of `source_type`, any float or quantised type, the
// panel's output features in order, num_rows <= kPanelWidth. By value if `type` is ExactWeightType(source_type) or
// kF32; kBF16 rounds to the nearest, kQ8 and kQ4 round as QuantizeRow does; no other `type` is allowed. A blocked type
// needs in_features to be a multiple of 32, kQ8Super and kQ4Super of 256. `out`: PackedPanelBytes(type, in_features)
// bytes, 64-byte aligned.
void PackPanel(DType source_type, const std::byte* rows, int num_rows, int in_features, WeightType type,
               std::byte* out);

// Does not own. data is 64-byte aligned.
struct PackedMatrix {
  const std::byte* data = nullptr;
  int out_features = 0;
  int in_features = 0;
  WeightType type = WeightType::kBF16;
  // From one panel to the next, in panels: 2 for each of two matrices whose panels alternate, so that whoever reads a
  // panel of the one and then the same of the other reads a single stream.
  int panel_stride = 1;
  // Few rows read it as if it were never needed again: so it is where a step reads more than the caches hold.
  bool past_caches = false;
};

// ---- Attention ----

// Tokens per KV block, and also the softmax tile: tiles lie at absolute positions, so prefill and decode of the same
// position reduce in the same order.
inline constexpr int kKvBlockTokens = 32;

// One layer's K and V in the block pool. Inside a block:
//   k [num_kv_heads, head_dim, kKvBlockTokens]   (transposed: one query against a tile of keys is a vector operation)
//   v [num_kv_heads, kKvBlockTokens, head_dim]
// In bf16 the elements of two rows d, d + 1 of k lie side by side, and those of two tokens of v, as in packed weights:
//   k [num_kv_heads, head_dim / 2, kKvBlockTokens, 2], v [num_kv_heads, kKvBlockTokens / 2, head_dim, 2]
// In fp16, 16 elements of the one row come before those of the other:
//   k [num_kv_heads, head_dim / 2, kKvBlockTokens / 16, 2, 16], v [num_kv_heads, kKvBlockTokens / 2, head_dim / 16, 2,
//   16]
// Both of `type`, blocks `block_stride` bytes apart.
struct KvPlanes {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  size_t block_stride = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // a multiple of 16, at most 256
  KvType type = KvType::kBF16;
};

struct KernelTable {
  Tier tier;

  // ---- matmul: y = x W^T ----
  // Activations are brought into the form that matmul reads once per step, and reused by all matrices of that input.
  // x [., in_features] fp32, rows x_stride floats apart; row_index selects (and orders) the rows, or is null for rows
  // 0..rows-1. out: rows * activation_row_bytes(form, in_features) bytes, 64-byte aligned.
  ActivationForm (*activation_form)(WeightType type);
  size_t (*activation_row_bytes)(ActivationForm form, int in_features);
  void (*prepare_activations)(ActivationForm form, const float* x, size_t x_stride, const int32_t* row_index, int rows,
                              int in_features, std::byte* out);
  // y [rows, out_features] fp32, rows y_stride floats apart, only the columns of panels [panel_begin, panel_end).
  void (*matmul)(const PackedMatrix& w, const std::byte* activations, int rows, int panel_begin, int panel_end,
                 float* y, size_t y_stride, StoreTo to);
  // silu(x gate^T) * (x up^T) of a pair of matrices of one shape and type, brought into the form that the next matmul
  // reads: what prepare_activations would make of it. Of each row in `out` only the columns of the panels are written.
  void (*matmul_swiglu)(const PackedMatrix& gate, const PackedMatrix& up, const std::byte* activations, int rows,
                        int panel_begin, int panel_end, ActivationForm form, std::byte* out);

  // ---- rows of hidden_size ----
  // out = x * rsqrt(mean(x^2) + eps) * weight, n elements. out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  // acc += scale * x, n elements.
  void (*add_scaled)(float* acc, const float* x, float scale, int n);

  // ---- attention ----
  // Rotates num_heads heads of head_dim in place; halves are paired (i, i + head_dim/2) as in Hugging Face's Llama.
  // cos, sin [head_dim/2] of the token's position.
  void (*rope)(float* heads, int num_heads, int head_dim, const float* cos, const float* sin);
  // Writes keys and values of `tokens` tokens of one sequence into a block from `slot` on, rounded to the cache's type.
  // k, v: fp32 [num_kv_heads, head_dim] a token, k already rotated, tokens `stride` floats apart.
  void (*write_kv)(const KvPlanes& planes, int32_t block, int slot, int tokens, const float* k, const float* v,
                   size_t stride);
  // Attention of `rows` tokens of one sequence at position, position + 1, ..., each over the positions up to its own,
  // for kv heads [kv_head, kv_head + num_kv_heads) and their groups of query heads.
  //   q, out: num_kv_heads * group_size * head_dim floats a row, rows q_stride and out_stride floats apart: the query
  //   heads in order, group_size for each kv head; out may not alias q
  //   block_table: block ids of the sequence, at least (position + rows - 1) / kKvBlockTokens + 1
  // Keys and values come from the cache only, those of these tokens included. A tier that multiplies bf16 by bf16
  // rounds the softmax's weights to bf16 where the cache is of that type.
  void (*attend)(const KvPlanes& planes, const int32_t* block_table, int position, int rows, int kv_head,
                 int num_kv_heads, int group_size, const float* q, size_t q_stride, float scale, float* out,
                 size_t out_stride);

  // ---- logits ----
  // log(sum(exp(x))) over n elements.
  float (*log_sum_exp)(const float* x, int n);
  // Index of the largest element, the lowest on ties; n >= 1; NaN never wins.
  int (*argmax)(const float* x, int n);
};

// Precondition: tier is in SupportedTiers().
const KernelTable& GetKernels(Tier tier);

}  // namespace scion::kernels
