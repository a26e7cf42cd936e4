// Passes of GELU and its gradient over rows, v = pre + bias, in float.
#include "gelu_kernels.h"

#include "gelu_math.h"
#include "vec.h"

namespace bertfast {
namespace {

template <class T, bool kTanh>
void forward(const Gelu& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* pre = static_cast<const T*>(g.pre) + row * g.cols;
    T* out = static_cast<T*>(g.out) + row * g.cols;
    for_columns(
        g.cols, [&](int64_t c) { store(out + c, gelu_value<kTanh>(load(pre + c) + load(g.bias + c))); },
        [&](int64_t c, int n) {
          store_tail(out + c, gelu_value<kTanh>(load_tail(pre + c, n) + load_tail(g.bias + c, n)), n);
        });
  }
}

template <class T, bool kTanh>
void backward(const Gelu& g, float* dbias, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* pre = static_cast<const T*>(g.pre) + row * g.cols;
    const T* dy = static_cast<const T*>(g.dy) + row * g.cols;
    T* out = static_cast<T*>(g.out) + row * g.cols;
    for_columns(
        g.cols,
        [&](int64_t c) {
          const Vec d = load(dy + c) * gelu_slope<kTanh>(load(pre + c) + load(g.bias + c));
          store(out + c, d);
          store(dbias + c, load(dbias + c) + d);
        },
        [&](int64_t c, int n) {
          const Vec d = load_tail(dy + c, n) * gelu_slope<kTanh>(load_tail(pre + c, n) + load_tail(g.bias + c, n));
          store_tail(out + c, d, n);
          for (int i = 0; i < n; ++i) dbias[c + i] += d[i];
        });
  }
}

void forward_any(const Gelu& g, int64_t begin, int64_t end) {
  if (g.bfloat16) return g.tanh ? forward<BFloat16, true>(g, begin, end) : forward<BFloat16, false>(g, begin, end);
  return g.tanh ? forward<float, true>(g, begin, end) : forward<float, false>(g, begin, end);
}

void backward_any(const Gelu& g, float* dbias, int64_t begin, int64_t end) {
  if (g.bfloat16)
    return g.tanh ? backward<BFloat16, true>(g, dbias, begin, end) : backward<BFloat16, false>(g, dbias, begin, end);
  return g.tanh ? backward<float, true>(g, dbias, begin, end) : backward<float, false>(g, dbias, begin, end);
}

}  // namespace

const GeluKernels BERTFAST_TABLE(gelu) = {forward_any, backward_any};

}  // namespace bertfast
