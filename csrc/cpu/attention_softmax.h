// The softmax of attention, one query's row of scores at a time: mask, exponential, dropout.
#pragma once

#include <cmath>

#include "attention_kernels.h"
#include "attention_products.h"
#include "philox.h"

namespace {

using bertfast::AttentionItem;
using bertfast::AttentionProblem;

// exp for what a softmax needs, x <= 0 give or take a rounding: vexp without its care for large x, and with an error
// relative to 1 and not to the result. Below -88 the exponent's field is 0 and so is the result. NaN stays NaN.
BERTFAST_INLINE Vec exp_below(Vec x) {
  const Vec magic = splat(12582912.0f);
  const Vec clamped = vmax(splat(-88.0f), x);
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec r = clamped - (shifted - magic) * 0.693147181f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // The low bits of `shifted` hold the power of two: 127 is the exponent's bias, and the shift drops what stands above.
  return p * (Vec)(((VecI)shifted + 127) << 23);
}

// Scores of one query: times `scale` plus the mask where there is one, and columns past the last key at minus infinity.
// Returns the scale that is still to be applied, by softmax_row, where it costs nothing.
inline float mask_row(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys, int64_t width,
                      float scale, float* __restrict row) {
  for (int64_t j = keys; j < width; ++j) row[j] = -__builtin_inff();
  if (p.mask == nullptr) return scale;
  const float* __restrict mask = p.mask + item.batch * p.mask_batch + item.head * p.mask_head + query * p.mask_query;
  if (p.mask_key == 0) {
    for (int64_t j = 0; j < keys; ++j) row[j] = row[j] * scale + mask[0];
  } else {
    for (int64_t j = 0; j < keys; ++j) row[j] = row[j] * scale + mask[j];
  }
  return 1.0f;
}

// The row's probabilities as the next product reads them: floats where they stand, or bfloat16 packed at its front.
BERTFAST_INLINE void put_probabilities(FloatProduct, float* row, int64_t j, Vec p) { store(row + j, p); }
#if defined(__AVX512BF16__)
BERTFAST_INLINE void put_probabilities(PairProduct, float* row, int64_t j, Vec p) {
  const __m256bh packed = _mm512_cvtneps_pbh((__m512)p);
  std::memcpy(reinterpret_cast<char*>(row) + j * 2, &packed, sizeof(packed));  // behind what has been read already
}
#endif

// Turns scores into exp(scale * (score - max)), scale > 0, times the dropout factors where there are any. Returns the
// sum before dropout, zero where no key is left; `peak` is scale * max.
template <class Product>
float softmax_row(float* row, int64_t width, float scale, const float* factors, float& peak) {
  Vec top = load(row);
  for (int64_t j = kLanes; j < width; j += kLanes) top = vmax(top, load(row + j));
  peak = max_of(top);
  // A NaN among the scores must come out, so only a row that is minus infinity throughout is called empty.
  if (peak == -__builtin_inff()) {
    bool empty = true;
    for (int64_t j = 0; j < width; ++j) empty = empty && row[j] == peak;
    if (empty) {
      std::memset(row, 0, width * sizeof(float));
      return 0.0f;
    }
  }
  peak *= scale;
  Vec total = Vec{};
  for (int64_t j = 0; j < width; j += kLanes) {
    const Vec e = exp_below(load(row + j) * scale - peak);
    put_probabilities(Product{}, row, j, factors == nullptr ? e : e * load(factors + j));
    total += e;
  }
  return sum(total);
}

// 1 where a key is kept and 0 where it is dropped; the keep rate joins the division by the softmax's sum, one rounding
// for both.
inline void dropout_row_of(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys,
                           float* factors) {
  dropout_attention_row({p.key0, p.key1, p.offset}, static_cast<uint32_t>(query),
                        static_cast<uint32_t>(item.batch * p.heads + item.head), keys, p.threshold, 1.0f, factors);
}

inline int64_t factors_width(int64_t longest) { return padded(longest) + kLanes * 16; }

}  // namespace
