// The kernels that a test runs through: what this machine has, and the tier of bf16 dot products, emulated where the
// machine lacks the instruction. Link scion_test_kernels.
#pragma once

#include <string>
#include <vector>

#include "engine/kernels/kernels.h"

namespace scion::test {

struct Kernels {
  std::string name;
  const kernels::KernelTable* table;
};

std::vector<Kernels> AllKernels();

}  // namespace scion::test
