// Products on sm_90 by CUTLASS as plain functions over raw device pointers: no torch, no Python. All matrices are
// bfloat16, dense and row-major; memory, and rows of operands, begin on 16 bytes. Each function takes the device, which
// the caller made current, the stream and a workspace of *_workspace(...) bytes, aligned to 256, which it may leave in
// any state. It allocates nothing and waits for nothing, so it can be captured in a CUDA graph. It returns an empty
// string, or why it launched nothing, valid until the thread's next call.
#pragma once

#include <cstdint>

#define BERTFAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace bertfast {

struct Launch {
  int32_t device;
  int32_t multiprocessors;
  void* stream;
  void* workspace;
};

}  // namespace bertfast

// y = gelu(pre + bias) [tokens, columns], pre = x [tokens, depth] weight [columns, depth]^T. bias [columns].
BERTFAST_EXPORT const char* bertfast_linear_gelu(const bertfast::Launch* launch, const void* x, const void* weight,
                                                 const void* bias, void* y, void* pre, int64_t tokens, int64_t columns,
                                                 int64_t depth);
// The same without pre, by a weight that lies [depth, columns].
BERTFAST_EXPORT const char* bertfast_linear_gelu_infer(const bertfast::Launch* launch, const void* x,
                                                       const void* weight, const void* bias, void* y, int64_t tokens,
                                                       int64_t columns, int64_t depth);
// dpre = (dy [tokens, depth] weight [depth, columns]) * gelu'(pre + bias) [tokens, columns]; sums [tile rows, columns
// rounded up to tiles] float32: column sums of each tile row of dpre, before it is rounded.
BERTFAST_EXPORT const char* bertfast_linear_dgelu(const bertfast::Launch* launch, const void* dy, const void* weight,
                                                  const void* pre, const void* bias, void* dpre, void* sums,
                                                  int64_t tokens, int64_t columns, int64_t depth);
// dweight [rows, columns] = dy [tokens, rows]^T x [tokens, columns].
BERTFAST_EXPORT const char* bertfast_linear_dweight(const bertfast::Launch* launch, const void* dy, const void* x,
                                                    void* dweight, int64_t tokens, int64_t rows, int64_t columns);
BERTFAST_EXPORT int64_t bertfast_linear_dweight_workspace(int32_t multiprocessors, int64_t tokens, int64_t rows,
                                                          int64_t columns);
