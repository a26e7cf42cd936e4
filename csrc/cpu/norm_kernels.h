// Row kernels shared by dropout_add_norm and embedding_sum_norm: pointers in, no torch. Each call does rows
// [begin, end); the host splits rows over threads. Parameters and partial sums are float.
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

enum class Storage { kFloat, kBFloat16 };

struct RowDropout {
  uint32_t key0, key1, offset, threshold;  // threshold 0 means no dropout
  float inverse_keep;
};

struct AddNorm {
  int64_t cols;
  const void* x;         // [rows, cols]
  const float* bias;     // [cols] or null
  const void* residual;  // [rows, cols] or null
  const float* weight;   // [cols]
  const float* norm_bias;
  float eps;
  RowDropout dropout;
  void* y;      // [rows, cols]
  float* mean;  // [rows]
  float* rstd;  // [rows]
};

struct AddNormGradient {
  int64_t cols;
  const void* dy;
  const void* x;
  const float* bias;
  const void* residual;
  const float* weight;
  const float* mean;
  const float* rstd;
  RowDropout dropout;
  void* dx;
  void* dresidual;  // null without a residual
};

struct EmbeddingNorm {
  int64_t cols;
  const int64_t *word_ids, *position_ids, *segment_ids;  // [rows]
  const void *word, *position, *segment;                 // tables
  const float *weight, *norm_bias;
  float eps;
  RowDropout dropout;
  void* y;
  float *mean, *rstd;
};

struct EmbeddingNormGradient {
  EmbeddingNorm forward;  // y and norm_bias unused
  const void* dy;
  float* dz;  // [rows, cols]: the gradient of the sum, scattered by the host in a second pass
};

// The partial sums are three rows of `cols` floats: dweight, dnorm_bias and (add_norm only) dbias; they are added to.
struct NormKernels {
  // One entry for each pair of storages (x, residual and y): both float, both bfloat16, bfloat16 beside float.
  void (*add_norm)(Storage x, Storage y, const AddNorm&, int64_t begin, int64_t end);
  void (*add_norm_gradient)(Storage x, Storage y, const AddNormGradient&, float* partial, int64_t begin, int64_t end);
  void (*embedding_norm)(Storage table, const EmbeddingNorm&, int64_t begin, int64_t end);
  void (*embedding_norm_gradient)(Storage table, const EmbeddingNormGradient&, float* partial, int64_t begin,
                                  int64_t end);
  void (*add_row)(float* destination, const float* source, int64_t cols);
};

BERTFAST_DECLARE_KERNELS(NormKernels, norm)

}  // namespace bertfast
