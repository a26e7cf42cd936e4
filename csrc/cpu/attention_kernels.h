// Attention of one (sequence, head) on raw pointers. The host cuts the batch into items and spreads them over threads;
// an item owns everything it writes, so the result does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "isa.h"

namespace bertfast {

struct AttentionProblem {
  bool bfloat16;        // storage of qkv, out and the gradients; arithmetic is float,
  bool pairs;           // but for products of bfloat16 in forward, where this is set and the build has them
  int64_t heads, size;  // H, D
  const void* qkv;      // [tokens, 3, H, D]
  float scale;
  const float* mask;  // added to scores, or null; addressed by the strides below, in elements
  int64_t mask_batch, mask_head, mask_query, mask_key;  // mask_key is 1 or 0
  uint32_t key0, key1, offset, threshold;               // dropout; threshold 0 means none
  double inverse_keep;
  // Forward writes out and lse; backward reads out and dout, and writes dqkv.
  void* out;  // [tokens, H, D]
  float* lse;
  const void* dout;  // [tokens, H, D]
  void* dqkv;        // [tokens, 3, H, D]
};

struct AttentionItem {
  int64_t first_token, length;     // of the sequence
  int64_t query_begin, query_end;  // forward: the queries of this item; backward: the whole sequence
  int64_t batch, head;
  int64_t lse_at;  // where lse of the sequence's first query stands
};

struct AttentionKernels {
  int64_t (*forward_scratch)(int64_t longest, int64_t size);  // floats a thread needs
  int64_t (*backward_scratch)(int64_t longest, int64_t size);
  void (*forward)(const AttentionProblem&, const AttentionItem&, float* scratch);
  void (*backward)(const AttentionProblem&, const AttentionItem&, float* scratch);
};

BERTFAST_DECLARE_KERNELS(AttentionKernels, attention)

}  // namespace bertfast
