// Vector exp and erf in float. exp: Cody-Waite reduction and a degree-6 polynomial, relative error about 1e-7, zero
// below -87.3, infinity above 88.7. erf: odd rational minimax on |x| < 4 (the form Eigen and XLA use), absolute error
// below 3e-7.
#pragma once

#include "vec.h"

namespace {

BERTFAST_INLINE Vec vexp(Vec x) {
  const Vec low = splat(-87.33654f), high = splat(88.72283f);
  const Vec clamped = vmin(vmax(x, low), high);
  // Adding 1.5 * 2^23 rounds to the nearest integer in the low bits.
  const Vec magic = splat(12582912.0f);
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  Vec r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // n can be 128 at the top of the range: scale in two halves so that the exponent field never overflows.
  const VecI exponent = (VecI)shifted - (VecI)magic;
  const VecI half = exponent >> 1;
  Vec y = p * (Vec)((half + 127) << 23) * (Vec)((exponent - half + 127) << 23);
  y = x < low ? Vec{} : y;
  y = x > high ? splat(__builtin_inff()) : y;
  return x == x ? y : x;
}

BERTFAST_INLINE Vec verf(Vec x) {
  const Vec clamped = vmin(vmax(x, splat(-4.0f)), splat(4.0f));
  const Vec s = clamped * clamped;
  Vec p = splat(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  Vec q = splat(-1.45660718464996e-05f);
  q = q * s + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return clamped * p / q;
}

}  // namespace
