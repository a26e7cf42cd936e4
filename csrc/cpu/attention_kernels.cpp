// Attention of one (sequence, head) in float. Keys are transposed once into scratch, so that both products are row-times-
// matrix blocks held in registers: scores = q K^T over a block of queries and all keys, then out = p V. Whole score rows are
// kept (a block of queries x S), so the softmax is exact and needs no running maximum. Backward recomputes p from lse, block
// of queries by block, and accumulates dk and dv in scratch in that fixed order.
#include "attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "math.h"
#include "philox.h"
#include "vec.h"

namespace bertfast {
namespace {

// Register block: rows x vectors of C held while the inner dimension runs. AVX-512 has 32 registers, the others 16.
#if defined(__AVX512F__)
constexpr int kRows = 6, kVectors = 4;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
// Queries of a block: their score rows (48 x 512 floats are 96 KB) stay in the second-level cache.
constexpr int64_t kQueries = 48;

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

template <int R, int V>
BERTFAST_INLINE void block(int64_t inner, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, float* c,
                           int64_t ldc, bool accumulate) {
  Vec total[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) total[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : Vec{};
  }
  for (int64_t k = 0; k < inner; ++k) {
    Vec right[V];
    for (int v = 0; v < V; ++v) right[v] = load(b + k * ldb + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec left = splat(a[r * a_row + k * a_col]);
      for (int v = 0; v < V; ++v) total[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, total[r][v]);
  }
}

template <int R>
void block_columns(int64_t columns, int64_t inner, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb,
                   float* c, int64_t ldc, bool accumulate) {
  int64_t n = 0;
  for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes) {
    block<R, kVectors>(inner, a, a_row, a_col, b + n, ldb, c + n, ldc, accumulate);
  }
  for (; n < columns; n += kLanes) block<R, 1>(inner, a, a_row, a_col, b + n, ldb, c + n, ldc, accumulate);
}

// C [rows, columns] (+)= A [rows, inner] B [inner, columns]; A by two strides, `columns` a multiple of kLanes.
void multiply(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t a_row, int64_t a_col, const float* b,
              int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    block_columns<kRows>(columns, inner, a + m * a_row, a_row, a_col, b, ldb, c + m * ldc, ldc, accumulate);
  }
  for (; m < rows; ++m) block_columns<1>(columns, inner, a + m * a_row, a_row, a_col, b, ldb, c + m * ldc, ldc, accumulate);
}

// Rows [count, size] of one head, `stride` elements apart, as floats of row length `width` (>= size), zeros after.
template <class T>
void gather(const T* from, int64_t stride, int64_t count, int64_t size, int64_t width, float factor, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < size; ++d) to[i * width + d] = to_float(from[i * stride + d]) * factor;
    for (int64_t d = size; d < width; ++d) to[i * width + d] = 0.0f;
  }
}

// The same transposed: [size, width] with width >= count.
template <class T>
void gather_transposed(const T* from, int64_t stride, int64_t count, int64_t size, int64_t width, float* to) {
  for (int64_t i0 = 0; i0 < width; i0 += kLanes) {
    const int64_t i1 = i0 + kLanes;
    for (int64_t d = 0; d < size; ++d) {
      for (int64_t i = i0; i < i1; ++i) to[d * width + i] = i < count ? to_float(from[i * stride + d]) : 0.0f;
    }
  }
}

template <class T>
void scatter(const float* from, int64_t width, int64_t count, int64_t size, float factor, T* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    for_columns(
        size, [&](int64_t d) { store(to + i * stride + d, load(from + i * width + d) * factor); },
        [&](int64_t d, int n) { store_tail(to + i * stride + d, load(from + i * width + d) * factor, n); });
  }
}

// Scores of one query: the mask added, and columns past the last key at minus infinity.
void mask_row(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys, int64_t width, float* row) {
  if (p.mask != nullptr) {
    const float* mask = p.mask + item.batch * p.mask_batch + item.head * p.mask_head + query * p.mask_query;
    for (int64_t j = 0; j < keys; ++j) row[j] += mask[j * p.mask_key];
  }
  for (int64_t j = keys; j < width; ++j) row[j] = -__builtin_inff();
}

// Turns scores into exp(score - max), returns their sum; all zero where no key is left.
float softmax_row(float* row, int64_t width, float& peak) {
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
  Vec total = Vec{};
  for (int64_t j = 0; j < width; j += kLanes) {
    const Vec e = vexp(load(row + j) - peak);
    store(row + j, e);
    total += e;
  }
  return sum(total);
}

void dropout_row_of(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys, float* factors) {
  dropout_attention_row({p.key0, p.key1, p.offset}, static_cast<uint32_t>(query),
                        static_cast<uint32_t>(item.batch * p.heads + item.head), keys, p.threshold, p.inverse_keep, factors);
}

int64_t factors_width(int64_t longest) { return padded(longest) + kLanes * 16; }

int64_t forward_scratch(int64_t longest, int64_t size) {
  const int64_t width = padded(longest), d = padded(size);
  return size * width + longest * d + kQueries * (2 * d + width) + factors_width(longest);
}

template <class T>
void forward(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  const int64_t keys = item.length, width = padded(keys), size = p.size, d = padded(size), token = 3 * p.heads * size;
  const T* head = static_cast<const T*>(p.qkv) + item.first_token * token + item.head * size;
  float* keys_t = scratch;
  float* values = keys_t + size * width;
  float* q = values + keys * d;
  float* out = q + kQueries * d;
  float* scores = out + kQueries * d;
  float* factors = scores + kQueries * width;
  gather_transposed(head + p.heads * size, token, keys, size, width, keys_t);
  gather(head + 2 * p.heads * size, token, keys, size, d, 1.0f, values);
  for (int64_t first = item.query_begin; first < item.query_end; first += kQueries) {
    const int64_t count = std::min(kQueries, item.query_end - first);
    gather(head + first * token, token, count, size, d, p.scale, q);
    multiply(count, width, size, q, d, 1, keys_t, width, scores, width, false);
    float inverse[kQueries];
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * width;
      float peak;
      mask_row(p, item, first + i, keys, width, row);
      const float total = softmax_row(row, width, peak);
      inverse[i] = total == 0.0f ? 0.0f : 1.0f / total;
      p.lse[item.lse_at + first + i] = total == 0.0f ? -__builtin_inff() : peak + std::log(total);
      if (p.threshold != 0) {
        dropout_row_of(p, item, first + i, keys, factors);
        for (int64_t j = 0; j < width; j += kLanes) store(row + j, load(row + j) * load(factors + j));
      }
    }
    multiply(count, d, keys, scores, width, 1, values, d, out, d, false);
    for (int64_t i = 0; i < count; ++i) {
      T* to = static_cast<T*>(p.out) + ((item.first_token + first + i) * p.heads + item.head) * size;
      scatter(out + i * d, d, 1, size, inverse[i], to, 0);
    }
  }
}

int64_t backward_scratch(int64_t longest, int64_t size) {
  const int64_t width = padded(longest), d = padded(size);
  return 2 * size * width + 3 * longest * d + kQueries * (3 * d + 2 * width) + factors_width(longest);
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
  float* dscore = probability + kQueries * width;
  float* factors = dscore + kQueries * width;
  gather_transposed(head + part, token, keys, size, width, keys_t);
  gather_transposed(head + 2 * part, token, keys, size, width, values_t);
  gather(head + part, token, keys, size, d, 1.0f, key);
  std::memset(dkey, 0, 2 * keys * d * sizeof(float));
  for (int64_t first = 0; first < keys; first += kQueries) {
    const int64_t count = std::min(kQueries, keys - first);
    gather(head + first * token, token, count, size, d, p.scale, q);
    const int64_t out_at = ((item.first_token + first) * p.heads + item.head) * size;
    gather(static_cast<const T*>(p.dout) + out_at, part, count, size, d, 1.0f, dout);
    multiply(count, width, size, q, d, 1, keys_t, width, probability, width, false);
    multiply(count, width, size, dout, d, 1, values_t, width, dscore, width, false);
    for (int64_t i = 0; i < count; ++i) {
      float* row = probability + i * width;
      float* ds = dscore + i * width;
      const float lse = p.lse[item.lse_at + first + i];
      if (lse == -__builtin_inff()) {
        std::memset(row, 0, width * sizeof(float));
        std::memset(ds, 0, width * sizeof(float));
        continue;
      }
      mask_row(p, item, first + i, keys, width, row);
      const T* out = static_cast<const T*>(p.out) + out_at + i * part;
      float delta = 0.0f;
      for (int64_t c = 0; c < size; ++c) delta += to_float(out[c]) * dout[i * d + c];
      if (p.threshold != 0) dropout_row_of(p, item, first + i, keys, factors);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec probabilities = vexp(load(row + j) - lse);
        const Vec factor = p.threshold != 0 ? load(factors + j) : splat(1.0f);
        store(ds + j, probabilities * (load(ds + j) * factor - delta));
        store(row + j, probabilities * factor);
      }
    }
    // q carries the scale already, which is what dk needs; dq gets it when it is written.
    multiply(keys, d, count, probability, 1, width, dout, d, dvalue, d, true);
    multiply(keys, d, count, dscore, 1, width, q, d, dkey, d, true);
    multiply(count, d, keys, dscore, width, 1, key, d, dq, d, false);
    scatter(dq, d, count, size, p.scale, dhead + first * token, token);
  }
  scatter(dkey, d, keys, size, 1.0f, dhead + part, token);
  scatter(dvalue, d, keys, size, 1.0f, dhead + 2 * part, token);
}

void forward_any(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  p.bfloat16 ? forward<BFloat16>(p, item, scratch) : forward<float>(p, item, scratch);
}

void backward_any(const AttentionProblem& p, const AttentionItem& item, float* scratch) {
  p.bfloat16 ? backward<BFloat16>(p, item, scratch) : backward<float>(p, item, scratch);
}

}  // namespace

const AttentionKernels BERTFAST_TABLE(attention) = {forward_scratch, backward_scratch, forward_any, backward_any};

}  // namespace bertfast
