// Products of fp32 matrices by the engine's fp32 kernels, shared out over a thread pool: the same bits for any number
// of threads.
#pragma once

#include <cstddef>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/base/aligned_buffer.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "extract/float_matrix.h"

namespace scion {

class MatrixOps {
 public:
  // Both must outlive it. Only one thread may use it at a time.
  MatrixOps(const kernels::KernelTable& kernels, ThreadPool& pool) : k_(kernels), pool_(pool) {}

  const kernels::KernelTable& kernels() const { return k_; }
  ThreadPool& pool() { return pool_; }

  // a b^T: a [m, k], b [n, k], out [m, n], which is made as large as that. type: kF32, or kBF16, to which b is rounded
  // then, and a too on tiers that multiply such numbers, several times faster. ResourceExhausted: no memory.
  absl::Status MultiplyTransposed(const FloatMatrix& a, const FloatMatrix& b, FloatMatrix& out,
                                  kernels::WeightType type = kernels::WeightType::kF32);
  // out [cols, rows], which is made as large as that.
  void Transpose(const FloatMatrix& a, FloatMatrix& out);
  // fn(i) for every i in [0, count), several to a task; fn must be the sole writer of what it writes.
  void ForEach(int count, absl::FunctionRef<void(int)> fn);

 private:
  // Makes `buffer` at least so large.
  static absl::Status Reserve(AlignedBuffer& buffer, size_t bytes);

  const kernels::KernelTable& k_;
  ThreadPool& pool_;
  AlignedBuffer panels_;       // of b
  AlignedBuffer activations_;  // of a
};

}  // namespace scion
