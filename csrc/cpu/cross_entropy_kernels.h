// Softmax statistics of rows [begin, end) of logits that lack their bias, and the gradient of columns [begin, end).
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

constexpr int64_t kIgnoredLabel = -100;
constexpr int64_t kCrossEntropyColumns = 512;  // backward's unit of work: bias and its gradient stay in the first cache

struct CrossEntropyRows {
  bool bfloat16;
  int64_t cols, stride;   // of logits
  const void* logits;     // [rows, cols]
  const float* bias;      // [cols]
  const int64_t* labels;  // [rows]
  float *loss, *lse;      // [rows]
  int64_t* argmax;        // [rows]
};

// `logits`, `bias` and `dbias` begin at column `first` of the vocabulary, which labels count from.
struct CrossEntropyColumns {
  bool bfloat16;
  int64_t rows, first, stride, stride_out;
  const void* logits;        // [rows, columns]
  const float* bias;         // [columns]
  const int64_t* labels;     // [rows]
  const float *lse, *dloss;  // [rows]
  void* dlogits;             // [rows, columns], as logits
  float* dbias;              // [columns], overwritten
};

struct CrossEntropyKernels {
  void (*forward)(const CrossEntropyRows&, int64_t begin, int64_t end);
  void (*backward)(const CrossEntropyColumns&, int64_t begin, int64_t end);
};

BERTFAST_DECLARE_KERNELS(CrossEntropyKernels, cross_entropy)

}  // namespace bertfast
