// gelu(v) = v (1 + erf(v / sqrt 2)) / 2 with v = pre + bias, or the tanh form, in float.
#include "gelu_kernels.h"

#include "math.h"
#include "vec.h"

namespace bertfast {
namespace {

constexpr float kInverseSqrt2 = 0.70710678f, kInverseSqrt2Pi = 0.39894228f;
constexpr float kSqrt2OverPi = 0.79788456f, kCubic = 0.044715f;

// (1 + tanh(u)) / 2 as a logistic function of 2u, which loses nothing where tanh(u) is near -1.
BERTFAST_INLINE Vec half_one_plus_tanh(Vec v) {
  return 1.0f / (1.0f + vexp(-2.0f * kSqrt2OverPi * (v + kCubic * v * v * v)));
}

template <bool kTanh>
BERTFAST_INLINE Vec value(Vec v) {
  if (kTanh) return v * half_one_plus_tanh(v);
  return 0.5f * v * (1.0f + verf(v * kInverseSqrt2));
}

template <bool kTanh>
BERTFAST_INLINE Vec slope(Vec v) {
  if (kTanh) {
    const Vec half = half_one_plus_tanh(v);
    // The other half by its own exponential: 1 - half would cancel where half is near 1.
    return half + v * (2.0f * half * half_one_plus_tanh(-v)) * kSqrt2OverPi * (1.0f + 3.0f * kCubic * v * v);
  }
  return 0.5f * (1.0f + verf(v * kInverseSqrt2)) + v * vexp(-0.5f * v * v) * kInverseSqrt2Pi;
}

template <class T, bool kTanh>
void forward(const Gelu& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* pre = static_cast<const T*>(g.pre) + row * g.cols;
    T* out = static_cast<T*>(g.out) + row * g.cols;
    for_columns(
        g.cols, [&](int64_t c) { store(out + c, value<kTanh>(load(pre + c) + load(g.bias + c))); },
        [&](int64_t c, int n) {
          store_tail(out + c, value<kTanh>(load_tail(pre + c, n) + load_tail(g.bias + c, n)), n);
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
          const Vec d = load(dy + c) * slope<kTanh>(load(pre + c) + load(g.bias + c));
          store(out + c, d);
          store(dbias + c, load(dbias + c) + d);
        },
        [&](int64_t c, int n) {
          const Vec d = load_tail(dy + c, n) * slope<kTanh>(load_tail(pre + c, n) + load_tail(g.bias + c, n));
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
