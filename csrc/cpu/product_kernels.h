// Writes the sides of a product in the order that packed_linear_kernels.h multiplies, from any layout, on the way from
// float to bfloat16 where the product is in bfloat16.
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

enum Storage { kFloatStorage, kBFloat16Storage };

// A matrix [lines, inner], or where `across`, [inner, lines]; rows `stride` elements apart. Two elements along `inner`
// make a word of a bfloat16 product; an odd last one is paired with zero.
struct ProductSide {
  const void* from;
  Storage storage;
  bool across;
  int64_t stride, lines, inner;
  bool pairs;  // whether the product is in bfloat16
};

struct ProductKernels {
  int64_t panel;  // lines of a panel; 0 where this build has no such kernels
  bool pairs;     // whether it has those of bfloat16
  // Lines [first, first + panel) as [words, panel], zeros after the last line.
  void (*pack_panel)(const ProductSide&, int64_t first, float* to);
  // Lines [first, first + panel) of a side that is `across`, as rows of `to_stride` words; scratch: [words, panel].
  void (*turn_lines)(const ProductSide&, int64_t first, float* scratch, float* to, int64_t to_stride);
};

BERTFAST_DECLARE_KERNELS(ProductKernels, product)

}  // namespace bertfast
