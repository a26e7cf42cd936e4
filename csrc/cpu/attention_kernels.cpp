// Attention of one (sequence, head) in float. Keys are transposed once into scratch, in panels as wide as the register
// block, so that every product is an outer-product block held in registers whose right side stays in the first-level
// cache: scores = q K^T over a block of queries and all keys, then out = p V. Whole score rows are kept (a block of
// queries x S), so the softmax is exact and needs no running maximum. Backward computes p anew in the same way, block
// of queries by block, and accumulates dk and dv in scratch in that fixed order.
#include "attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "math.h"
#include "philox.h"
#include "vec.h"

namespace bertfast {
namespace {

// Register block: rows x vectors of C held while the inner dimension runs. AVX-512 has 32 registers, the others 16, and
// without FMA a product needs one of its own.
#if defined(__AVX512F__)
constexpr int kRows = 6, kVectors = 4;
#elif defined(__AVX2__)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr int64_t kPanel = kVectors * kLanes;
// Steps of the inner dimension summed in registers before they join C. Short partial sums round less: at D = 64 the
// error of float32 outputs is 0.62 of one running sum's, for 7 % of the time against 96 steps; 16 would cost 20 %.
constexpr int64_t kInner = 32;
// Queries of a block: their score rows (48 x 512 floats are 96 KB) stay in the second-level cache.
constexpr int64_t kQueries = 48;

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Length of a score row. One vector more than needed: rows a power of two apart would share a few cache sets.
int64_t score_stride(int64_t width) { return width + kLanes; }

// C [R, V vectors] (+)= A B. A(r, k) = a[r * lda + k], or a[k * lda + r] where it is Transposed.
template <bool Transposed, int R, int V>
void block(int64_t inner, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
           bool accumulate) {
  Vec total[R][V] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec right[V];
    for (int v = 0; v < V; ++v) right[v] = load(b + k * ldb + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const float left = Transposed ? a[k * lda + r] : a[r * lda + k];
      for (int v = 0; v < V; ++v) total[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      float* at = c + r * ldc + v * kLanes;
      store(at, accumulate ? load(at) + total[r][v] : total[r][v]);
    }
  }
}

using Block = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <bool Transposed, size_t... I>
Block find_block(int64_t rows, int64_t vectors, std::index_sequence<I...>) {
  static constexpr Block kTable[] = {block<Transposed, I / kVectors + 1, I % kVectors + 1>...};
  return kTable[(rows - 1) * kVectors + vectors - 1];
}

// C [rows, columns] (+)= A [rows, inner] B [inner, columns], `columns` a multiple of kLanes. B lies in rows ldb apart,
// or, where ldb is 0, in panels as gather_panels writes them.
template <bool Transposed>
void multiply(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t lda, const float* b, int64_t ldb,
              float* c, int64_t ldc, bool accumulate) {
  for (int64_t k = 0; k < inner; k += kInner) {
    const int64_t steps = std::min(kInner, inner - k);
    const float* left = a + (Transposed ? k * lda : k);
    for (int64_t n = 0; n < columns; n += kPanel) {
      const int64_t wide = std::min(kPanel, columns - n), stride = ldb == 0 ? wide : ldb;
      const float* right = b + (ldb == 0 ? n * inner + k * wide : k * ldb + n);
      for (int64_t m = 0; m < rows; m += kRows) {
        const Block body = find_block<Transposed>(std::min<int64_t>(kRows, rows - m), wide / kLanes,
                                                  std::make_index_sequence<kRows * kVectors>());
        body(steps, left + (Transposed ? m : m * lda), lda, right, stride, c + m * ldc + n, ldc, accumulate || k > 0);
      }
    }
  }
}

// Rows [count, size] of one head, `stride` elements apart, as floats of row length `width` (>= size), zeros after.
template <class T>
void gather(const T* from, int64_t stride, int64_t count, int64_t size, int64_t width, float factor, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    for_columns(
        size, [&](int64_t d) { store(to + i * width + d, load(from + i * stride + d) * factor); },
        [&](int64_t d, int n) { store(to + i * width + d, load_tail(from + i * stride + d, n) * factor); });
  }
}

template <bool High, size_t... I>
BERTFAST_INLINE Vec zip(Vec a, Vec b, std::index_sequence<I...>) {
  constexpr int kFirst = High ? kLanes / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFirst + static_cast<int>(I) / 2 + (I % 2 ? kLanes : 0))...);
#else
  return __builtin_shuffle(a, b, VecI{(kFirst + static_cast<int>(I) / 2 + (I % 2 ? kLanes : 0))...});
#endif
}

// Transposes a kLanes x kLanes tile: zipping the two halves of the rows, as often as kLanes halves.
BERTFAST_INLINE void transpose(Vec (&tile)[kLanes]) {
  const auto lanes = std::make_index_sequence<kLanes>();
  for (int width = 1; width < kLanes; width *= 2) {
    Vec zipped[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip<false>(tile[i], tile[i + kLanes / 2], lanes);
      zipped[2 * i + 1] = zip<true>(tile[i], tile[i + kLanes / 2], lanes);
    }
    for (int i = 0; i < kLanes; ++i) tile[i] = zipped[i];
  }
}

// The rows transposed, [size, width] cut into panels of kPanel columns (the last may be narrower), one after another;
// columns past `count` are zero.
template <class T>
void gather_panels(const T* from, int64_t stride, int64_t count, int64_t size, int64_t width, float* to) {
  for (int64_t first = 0; first < width; first += kLanes) {
    const int64_t panel = first / kPanel * kPanel, wide = std::min(kPanel, width - panel);
    float* column = to + panel * size + (first - panel);
    for (int64_t d = 0; d < size; d += kLanes) {
      const int rows = static_cast<int>(std::min<int64_t>(kLanes, size - d));
      Vec tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const T* at = from + (first + i) * stride + d;
        tile[i] = first + i >= count ? Vec{} : rows == kLanes ? load(at) : load_tail(at, rows);
      }
      transpose(tile);
      for (int r = 0; r < rows; ++r) store(column + (d + r) * wide, tile[r]);
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

// Scores of one query: the mask added, and columns past the last key at minus infinity.
void mask_row(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys, int64_t width,
              float* __restrict row) {
  if (p.mask != nullptr) {
    const float* __restrict mask = p.mask + item.batch * p.mask_batch + item.head * p.mask_head + query * p.mask_query;
    if (p.mask_key == 0) {
      for (int64_t j = 0; j < keys; ++j) row[j] += mask[0];
    } else {
      for (int64_t j = 0; j < keys; ++j) row[j] += mask[j];
    }
  }
  for (int64_t j = keys; j < width; ++j) row[j] = -__builtin_inff();
}

// Turns scores into exp(score - max), times the dropout factors where there are any; returns the sum before dropout,
// zero where no key is left.
float softmax_row(float* row, int64_t width, const float* factors, float& peak) {
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
    const Vec e = exp_below(load(row + j) - peak);
    store(row + j, factors == nullptr ? e : e * load(factors + j));
    total += e;
  }
  return sum(total);
}

// 1 where a key is kept and 0 where it is dropped; the keep rate joins the division by the softmax's sum, one rounding
// for both.
void dropout_row_of(const AttentionProblem& p, const AttentionItem& item, int64_t query, int64_t keys, float* factors) {
  dropout_attention_row({p.key0, p.key1, p.offset}, static_cast<uint32_t>(query),
                        static_cast<uint32_t>(item.batch * p.heads + item.head), keys, p.threshold, 1.0f, factors);
}

int64_t factors_width(int64_t longest) { return padded(longest) + kLanes * 16; }

int64_t forward_scratch(int64_t longest, int64_t size) {
  const int64_t width = padded(longest), d = padded(size);
  return size * width + longest * d + kQueries * (2 * d + score_stride(width)) + factors_width(longest);
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
  const int64_t stride = score_stride(width);
  float* factors = scores + kQueries * stride;
  gather_panels(head + p.heads * size, token, keys, size, width, keys_t);
  gather(head + 2 * p.heads * size, token, keys, size, d, 1.0f, values);
  for (int64_t first = item.query_begin; first < item.query_end; first += kQueries) {
    const int64_t count = std::min(kQueries, item.query_end - first);
    gather(head + first * token, token, count, size, d, p.scale, q);
    multiply<false>(count, width, size, q, d, keys_t, 0, scores, stride, false);
    float inverse[kQueries];
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * stride;
      float peak;
      mask_row(p, item, first + i, keys, width, row);
      if (p.threshold != 0) dropout_row_of(p, item, first + i, keys, factors);
      const float total = softmax_row(row, width, p.threshold != 0 ? factors : nullptr, peak);
      inverse[i] = total == 0.0f ? 0.0f : static_cast<float>(p.inverse_keep / total);
      p.lse[item.lse_at + first + i] = total == 0.0f ? -__builtin_inff() : peak + std::log(total);
    }
    multiply<false>(count, d, keys, scores, stride, values, d, out, d, false);
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
    multiply<false>(count, width, size, q, d, keys_t, 0, probability, stride, false);
    multiply<false>(count, width, size, dout, d, values_t, 0, dscore, stride, false);
    for (int64_t i = 0; i < count; ++i) {
      float* row = probability + i * stride;
      float* ds = dscore + i * stride;
      float peak;
      mask_row(p, item, first + i, keys, width, row);
      const float total = softmax_row(row, width, nullptr, peak);
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
    multiply<true>(keys, d, count, probability, stride, dout, d, dvalue, d, true);
    multiply<true>(keys, d, count, dscore, stride, q, d, dkey, d, true);
    multiply<false>(count, d, keys, dscore, stride, key, d, dq, d, false);
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
