// GELU with the cheaper erfc of bertfast/ops/linear_gelu/cheap_erf.py, which says where the numbers come from, for
// device and host:
//
//     gelu(x) = x (1 - q) for x >= 0, x q below,   q = erfc(|x| / sqrt 2) / 2 = exp(-x x / 2) t (c1 + c2 t + c3 t t +
//     c4 t t t), t = 1 / (1 + p |x|)
//
// About 12 instructions an element, two of them of the special-function unit; the relative error of q is 7.4e-5 on |x|
// <= 6.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define BERTFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BERTFAST_HOST_DEVICE inline
#endif

namespace bertfast {

constexpr float kP = 0.2863593f;
constexpr float kC1 = 0.10664848f, kC2 = 0.17286672f, kC3 = -0.06027722f, kC4 = 0.28076202f;  // halved, as q needs them
constexpr float kExponent = -0.72134752f;                                                     // -log2(e) / 2
constexpr float kDensityAt0 = 0.39894228f;                                                    // 1 / sqrt(2 pi)

// 1 / x in one instruction, of a relative error of 2^-23.
BERTFAST_HOST_DEVICE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// 2^x in one instruction, of a relative error of 2^-22; subnormal results are 0.
BERTFAST_HOST_DEVICE float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// q / exp(-x x / 2): q is its product with what `bell` gives.
BERTFAST_HOST_DEVICE float scaled_tail(float x) {
  float t = reciprocal(std::fabs(x) * kP + 1.0f);
  return t * (((kC4 * t + kC3) * t + kC2) * t + kC1);
}

BERTFAST_HOST_DEVICE float bell(float x) { return power_of_2(x * x * kExponent); }

BERTFAST_HOST_DEVICE float gelu(float x) {
  float q = bell(x) * scaled_tail(x);
  return x * (x < 0.0f ? q : 1.0f - q);
}

// Phi(x) + x phi(x) = 1/2 + sign(x) (1/2 + exp(-x x / 2) (|x| phi(0) - q / exp(-x x / 2))).
BERTFAST_HOST_DEVICE float gelu_gradient(float x) {
  float half = bell(x) * (std::fabs(x) * kDensityAt0 - scaled_tail(x)) + 0.5f;
  return 0.5f + (x < 0.0f ? -half : half);
}

}  // namespace bertfast
