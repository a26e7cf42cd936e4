// gelu(v) = v (1 + erf(v / sqrt 2)) / 2, or its tanh form, and their slopes, on vectors of floats.
#pragma once

#include "math.h"

namespace {

constexpr float kInverseSqrt2 = 0.70710678f, kInverseSqrt2Pi = 0.39894228f;
constexpr float kSqrt2OverPi = 0.79788456f, kCubic = 0.044715f;

// (1 + tanh(u)) / 2 as a logistic function of 2u, which loses nothing where tanh(u) is near -1.
BERTFAST_INLINE Vec half_one_plus_tanh(Vec v) {
  return 1.0f / (1.0f + vexp(-2.0f * kSqrt2OverPi * (v + kCubic * v * v * v)));
}

template <bool kTanh>
BERTFAST_INLINE Vec gelu_value(Vec v) {
  if (kTanh) return v * half_one_plus_tanh(v);
  return 0.5f * v * (1.0f + verf(v * kInverseSqrt2));
}

template <bool kTanh>
BERTFAST_INLINE Vec gelu_slope(Vec v) {
  if (kTanh) {
    const Vec half = half_one_plus_tanh(v);
    // The other half by its own exponential: 1 - half would cancel where half is near 1.
    return half + v * (2.0f * half * half_one_plus_tanh(-v)) * kSqrt2OverPi * (1.0f + 3.0f * kCubic * v * v);
  }
  return 0.5f * (1.0f + verf(v * kInverseSqrt2)) + v * vexp(-0.5f * v * v) * kInverseSqrt2Pi;
}

}  // namespace
