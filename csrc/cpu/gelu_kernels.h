// Bias and GELU on rows [begin, end) of a [rows, cols] matrix, and their gradients.
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

struct Gelu {
  bool bfloat16, tanh;
  int64_t cols;
  const void* pre;    // [rows, cols], before the bias
  const float* bias;  // [cols]
  const void* dy;     // backward only
  void* out;          // y, or dpre in backward
};

struct GeluKernels {
  void (*forward)(const Gelu&, int64_t begin, int64_t end);
  void (*backward)(const Gelu&, float* dbias, int64_t begin, int64_t end);  // dbias is added to
};

BERTFAST_DECLARE_KERNELS(GeluKernels, gelu)

}  // namespace bertfast
