// Attention of one (sequence, head). Keys are transposed once into scratch, in panels as wide as the products' register
// block: scores = q K^T over a block of queries and all keys, then out = p V. Whole score rows are kept (a block of
// queries x S), so the softmax is exact and needs no running maximum. Backward, in float, computes p anew in the same
// way, block of queries by block, and accumulates dk and dv in scratch in that fixed order.
#include "attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_products.h"
#include "attention_softmax.h"
#include "vec.h"

namespace bertfast {
namespace {

// Queries of a block: their score rows (48 x 512 floats are 96 KB) stay in the second-level cache.
constexpr int64_t kQueries = 48;

// Length of a score row. One vector more than needed: rows a power of two apart would share a few cache sets.
int64_t score_stride(int64_t width) { return width + kLanes; }

// How forward reads one head: everything widened to float, the scale multiplied into the queries.
template <class T>
struct FloatHead {
  using Storage = T;
  using Product = FloatProduct;
  static constexpr int64_t kTerms = 1;  // of a sum, in one word
  static void keys(const T* from, int64_t token, int64_t count, int64_t size, int64_t width, float* to) {
    gather_panels(from, token, count, size, width, to);
  }
  static void values(const T* from, int64_t token, int64_t count, int64_t size, int64_t d, float* to) {
    gather(from, token, count, size, d, 1.0f, to);
  }
  // Scores of a block of queries, with the factor that they still lack.
  static float scores(const AttentionProblem& p, const T* q, int64_t token, int64_t count, int64_t width,
                      const float* keys_t, float* scratch, float* scores) {
    const int64_t d = padded(p.size);
    gather(q, token, count, p.size, d, p.scale, scratch);
    multiply<Product, false>(count, width, p.size, scratch, d, keys_t, 0, scores, score_stride(width), false);
    return 1.0f;
  }
};

#if defined(__AVX512BF16__)
// bfloat16 as it lies in memory, two elements a word, so an even head size: queries are not even copied. Probabilities
// are rounded to bfloat16 before they meet the values, as in eager; their sum is not.
struct PairHead {
  using Storage = BFloat16;
  using Product = PairProduct;
  static constexpr int64_t kTerms = 2;
  static const float* words(const BFloat16* at) { return reinterpret_cast<const float*>(at); }  // moved by memcpy only
  static void keys(const BFloat16* from, int64_t token, int64_t count, int64_t size, int64_t width, float* to) {
    gather_panels(words(from), token / 2, count, size / 2, width, to);
  }
  static void values(const BFloat16* from, int64_t token, int64_t count, int64_t size, int64_t d, float* to) {
    interleave_rows(from, token, count, size, d, to);
  }
  static float scores(const AttentionProblem& p, const BFloat16* q, int64_t token, int64_t count, int64_t width,
                      const float* keys_t, float*, float* scores) {
    multiply<Product, false>(count, width, p.size / 2, words(q), token / 2, keys_t, 0, scores, score_stride(width),
                             false);
    return p.scale;
  }
};
#endif

int64_t forward_scratch(int64_t longest, int64_t size) {
  const int64_t width = padded(longest), d = padded(size);
  return size * width + longest * d + kQueries * (2 * d + score_stride(width)) + factors_width(longest);
}

template <class Head>
void forward(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  using T = typename Head::Storage;
  using Product = typename Head::Product;
  const int64_t keys = item.length, width = padded(keys), size = p.size, d = padded(size), token = 3 * p.heads * size;
  const T* head = static_cast<const T*>(p.qkv) + item.first_token * token + item.head * size;
  float* keys_t = scratch;
  float* values = keys_t + size * width;
  float* q = values + keys * d;
  float* out = q + kQueries * d;
  float* scores = out + kQueries * d;
  const int64_t stride = score_stride(width);
  float* factors = scores + kQueries * stride;
  Head::keys(head + p.heads * size, token, keys, size, width, keys_t);
  Head::values(head + 2 * p.heads * size, token, keys, size, d, values);
  for (int64_t first = item.query_begin; first < item.query_end; first += kQueries) {
    const int64_t count = std::min(kQueries, item.query_end - first);
    const float lacking = Head::scores(p, head + first * token, token, count, width, keys_t, q, scores);
    float inverse[kQueries];
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * stride;
      float peak;
      const float scale = mask_row(p, item, first + i, keys, width, lacking, row);
      if (p.threshold != 0) dropout_row_of(p, item, first + i, keys, factors);
      const float total = softmax_row<Product>(row, width, scale, p.threshold != 0 ? factors : nullptr, peak);
      inverse[i] = total == 0.0f ? 0.0f : static_cast<float>(p.inverse_keep / total);
      p.lse[item.lse_at + first + i] = total == 0.0f ? -__builtin_inff() : peak + std::log(total);
    }
    const int64_t inner = (keys + Head::kTerms - 1) / Head::kTerms;
    multiply<Product, false>(count, d, inner, scores, stride, values, d, out, d, false);
    for (int64_t i = 0; i < count; ++i) {
      T* to = static_cast<T*>(p.out) + ((item.first_token + first + i) * p.heads + item.head) * size;
      scatter(out + i * d, d, 1, size, inverse[i], to, 0);
    }
  }
}

int64_t backward_scratch(int64_t longest, int64_t size) {
  const int64_t width = padded(longest), d = padded(size);
  return 2 * size * width + 3 * longest * d + kQueries * (3 * d + 2 * score_stride(width)) + factors_width(longest);
}

template <class T>
void backward(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  const int64_t keys = item.length, width = padded(keys), size = p.size, d = padded(size), token = 3 * p.heads * size;
  const int64_t part = p.heads * size;
  const int64_t head_at = item.first_token * token + item.head * size;
  const T* head = static_cast<const T*>(p.qkv) + head_at;
  T* dhead = static_cast<T*>(p.dqkv) + head_at;
  float* keys_t = scratch;
  float* values_t = keys_t + size * width;
  float* key = values_t + size * width;
  float* dkey = key + keys * d;
  float* dvalue = dkey + keys * d;
  float* q = dvalue + keys * d;
  float* dout = q + kQueries * d;
  float* dq = dout + kQueries * d;
  float* probability = dq + kQueries * d;
  const int64_t stride = score_stride(width);
  float* dscore = probability + kQueries * stride;
  float* factors = dscore + kQueries * stride;
  gather_panels(head + part, token, keys, size, width, keys_t);
  gather_panels(head + 2 * part, token, keys, size, width, values_t);
  gather(head + part, token, keys, size, d, 1.0f, key);
  std::memset(dkey, 0, 2 * keys * d * sizeof(float));
  for (int64_t first = 0; first < keys; first += kQueries) {
    const int64_t count = std::min(kQueries, keys - first);
    gather(head + first * token, token, count, size, d, p.scale, q);
    const int64_t out_at = ((item.first_token + first) * p.heads + item.head) * size;
    gather(static_cast<const T*>(p.dout) + out_at, part, count, size, d, 1.0f, dout);
    multiply<FloatProduct, false>(count, width, size, q, d, keys_t, 0, probability, stride, false);
    multiply<FloatProduct, false>(count, width, size, dout, d, values_t, 0, dscore, stride, false);
    for (int64_t i = 0; i < count; ++i) {
      float* row = probability + i * stride;
      float* ds = dscore + i * stride;
      float peak;
      mask_row(p, item, first + i, keys, width, 1.0f, row);
      const float total = softmax_row<FloatProduct>(row, width, 1.0f, nullptr, peak);
      const bool dropout = p.threshold != 0;
      if (dropout) dropout_row_of(p, item, first + i, keys, factors);
      // Without a key the row is zero already; 1 / total would make NaN of it.
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      const float kept = static_cast<float>(p.inverse_keep);
      Vec products = Vec{};
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec probabilities = load(row + j) * inverse;
        const Vec dp = dropout ? load(ds + j) * (load(factors + j) * kept) : load(ds + j);
        products += probabilities * dp;
        store(row + j, probabilities);
        store(ds + j, dp);
      }
      const float delta = sum(products);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec probabilities = load(row + j);
        store(ds + j, probabilities * (load(ds + j) - delta));
        if (dropout) store(row + j, probabilities * (load(factors + j) * kept));
      }
    }
    // q carries the scale already, which is what dk needs; dq gets it when it is written.
    multiply<FloatProduct, true>(keys, d, count, probability, stride, dout, d, dvalue, d, true);
    multiply<FloatProduct, true>(keys, d, count, dscore, stride, q, d, dkey, d, true);
    multiply<FloatProduct, false>(count, d, keys, dscore, stride, key, d, dq, d, false);
    scatter(dq, d, count, size, p.scale, dhead + first * token, token);
  }
  scatter(dkey, d, keys, size, 1.0f, dhead + part, token);
  scatter(dvalue, d, keys, size, 1.0f, dhead + 2 * part, token);
}

void forward_any(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
#if defined(__AVX512BF16__)
  // softmax_row takes a positive scale.
  if (p.bfloat16 && p.pairs && p.size % 2 == 0 && p.scale > 0.0f) return forward<PairHead>(p, item, scratch);
#endif
  p.bfloat16 ? forward<FloatHead<BFloat16>>(p, item, scratch) : forward<FloatHead<float>>(p, item, scratch);
}

void backward_any(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  p.bfloat16 ? backward<BFloat16>(p, item, scratch) : backward<float>(p, item, scratch);
}

}  // namespace

const AttentionKernels BERTFAST_TABLE(attention) = {forward_scratch, backward_scratch, forward_any, backward_any};

}  // namespace bertfast
