// Linear layers for inference from weights reordered once: our own products, in place of oneDNN's, so that outputs go
// to buffers of the caller and a handful of tokens costs no more than reading the weights.
#pragma once

#include <ATen/core/Tensor.h>

#include "packed_linear_kernels.h"

namespace bertfast {

enum class Activation : int64_t { kNone, kGelu, kGeluTanh };

// A Linear's weight [N, K], reordered once, for x and y of one dtype. `data` is opaque. In int8 the product is of 8-bit
// integers: the weight's are made once, one scale for each output; x's are made on every call, one scale for each
// token.
struct PackedWeight {
  at::Tensor data, scale, sum;  // the latter two [N] float, int8 only
  int64_t inputs = 0, outputs = 0;
  at::ScalarType dtype = at::kFloat;
  bool int8 = false;
};

// Whether bfloat16 is multiplied faster as float here: the processor has no AMX and no fast instruction for pairs.
bool widens_bfloat16();

// Whether there are kernels for x of this dtype with `inputs` columns, and they are the fastest there are: processors
// with AMX multiply bfloat16 faster through oneDNN.
bool can_pack(at::ScalarType dtype, int64_t inputs, bool int8 = false);

// weight [N, K], float or bfloat16 in any layout, for x of dtype.
PackedWeight pack_weight(const at::Tensor& weight, at::ScalarType dtype, bool int8 = false);

// y [rows, N] = activation(x [rows, K] W^T + bias), x and y contiguous in w.dtype, bias [N] or null.
void packed_linear(const void* x, int64_t rows, const PackedWeight& w, const float* bias, Activation activation,
                   void* y);

// All panels of p for `rows` rows.
void run_product(const PackedProduct& p, PackedKind kind, int64_t rows);

}  // namespace bertfast
