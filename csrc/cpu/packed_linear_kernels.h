// Products of activations with weights reordered once. Everything is counted in 32-bit words of the inner dimension:
// one float, two bfloat16 or four bytes, so one kernel serves the three. A fourth kind has weights of bfloat16 and x of
// floats, two for each word: a block of the weights is widened before the rows meet it.
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

enum PackedKind { kPackedFloat, kPackedBFloat16, kPackedInt8, kPackedWidened, kPackedKinds };

// y [rows, outputs] = activation(x W^T + bias).
struct PackedProduct {
  const void* x;         // [rows, words] words, rows x_stride words apart; [rows, 2 words] floats where widened
  const float* x_scale;  // int8 only: [rows], what one step of x's integers is worth,
  const float* x_low;    // and what the integer 0 stands for
  const float* weights;  // as `pack` wrote them
  const float* w_scale;  // int8 only: [outputs]
  const float* w_sum;    // int8 only: [outputs], the sum of the weight's integers
  const float* bias;     // [outputs], or null
  void* y;               // [rows, outputs], rows y_stride elements apart
  int64_t words, outputs, x_stride, y_stride;
  int activation;   // 0 none, 1 erf GELU, 2 tanh GELU
  bool y_bfloat16;  // else float
};

struct PackedLinearKernels {
  int64_t panel;  // columns of a panel; 0 where this build has no such kernels
  int64_t rows;   // of the register block
  int64_t block;  // floats that the widened block takes in scratch
  // words [outputs, words] to [ceil(outputs / panel)] panels of [words, panel], zeros after the last column.
  void (*pack)(const float* words, int64_t outputs, int64_t inner, float* to);
  // Rows [row, row + count) of one panel. scratch: [count, panel] words, and `block` floats where widened.
  void (*run[kPackedKinds])(const PackedProduct&, int64_t panel_index, int64_t row, int64_t count, float* scratch);
  // Rows [rows, cols] of float or bfloat16 as bytes q: x is about low + q * scale, over the whole range of a row. What
  // comes out of GELU reaches far up and hardly down, so a scale around zero would waste half of the integers.
  void (*quantize)(const void* x, bool bfloat16, int64_t rows, int64_t cols, uint8_t* to, float* scale, float* low);
  void (*widen)(const void* bfloat16, int64_t count, float* to);
};

BERTFAST_DECLARE_KERNELS(PackedLinearKernels, packed_linear)

}  // namespace bertfast
