// The register-blocked products of attention and the layouts they read. C [rows, columns] (+)= A B is an outer-product
// block held in registers whose right side, cut into panels as wide as the block, stays in the first-level cache.
// FloatProduct multiplies floats. PairProduct reads 32-bit words of two bfloat16 each, neighbours along the inner
// dimension, and adds both products of a word at once (AVX512-BF16): twice the float rate, sums in float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "vec.h"

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

struct FloatProduct {
  // Steps of the inner dimension summed in registers before they join C. Short partial sums round less: at D = 64 the
  // error of float32 outputs is 0.62 of one running sum's, for 7 % of the time against 96 steps; 16 would cost 20 %.
  static constexpr int64_t kInner = 32;
  BERTFAST_INLINE static Vec add(Vec total, const float* left, Vec right) { return total + *left * right; }
};

#if defined(__AVX512BF16__)
struct PairProduct {
  // 256 terms: what rounding them costs is far below bfloat16's own.
  static constexpr int64_t kInner = 128;
  BERTFAST_INLINE static Vec add(Vec total, const float* left, Vec right) {
    int word;
    std::memcpy(&word, left, sizeof(word));  // two bfloat16, never read as the float they are not
    return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(word), (__m512bh)right);
  }
};
#endif

#if defined(__AVX512BF16__)
// Two floats of a matrix that is to be multiplied in bfloat16: loads as the one word they become.
struct FloatPair {
  float low, high;
};

BERTFAST_INLINE Vec load(const FloatPair* at) {
  const float* floats = &at->low;
  return (Vec)_mm512_cvtne2ps_pbh((__m512)load(floats + kLanes), (__m512)load(floats));
}
#endif

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// C [R, V vectors] (+)= A B. A(r, k) = a[r * lda + k], or a[k * lda + r] where it is Transposed.
template <class Product, bool Transposed, int R, int V>
void block(int64_t inner, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
           bool accumulate) {
  Vec total[R][V] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec right[V];
    BERTFAST_UNROLL
    for (int v = 0; v < V; ++v) right[v] = load(b + k * ldb + v * kLanes);
    BERTFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* left = a + (Transposed ? k * lda + r : r * lda + k);
      BERTFAST_UNROLL
      for (int v = 0; v < V; ++v) total[r][v] = Product::add(total[r][v], left, right[v]);
    }
  }
  BERTFAST_UNROLL
  for (int r = 0; r < R; ++r) {
    BERTFAST_UNROLL
    for (int v = 0; v < V; ++v) {
      float* at = c + r * ldc + v * kLanes;
      store(at, accumulate ? load(at) + total[r][v] : total[r][v]);
    }
  }
}

using Block = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <class Product, bool Transposed, size_t... I>
Block find_block(int64_t rows, int64_t vectors, std::index_sequence<I...>) {
  static constexpr Block kTable[] = {block<Product, Transposed, I / kVectors + 1, I % kVectors + 1>...};
  return kTable[(rows - 1) * kVectors + vectors - 1];
}

// C [rows, columns] (+)= A [rows, inner] B [inner, columns], `columns` a multiple of kLanes. B lies in rows ldb apart,
// or, where ldb is 0, in panels as gather_panels writes them. `inner` and lda count what Product multiplies: floats, or
// words of two bfloat16.
template <class Product, bool Transposed>
void multiply(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t lda, const float* b, int64_t ldb,
              float* c, int64_t ldc, bool accumulate) {
  for (int64_t k = 0; k < inner; k += Product::kInner) {
    const int64_t steps = std::min(Product::kInner, inner - k);
    const float* left = a + (Transposed ? k * lda : k);
    for (int64_t n = 0; n < columns; n += kPanel) {
      const int64_t wide = std::min(kPanel, columns - n), stride = ldb == 0 ? wide : ldb;
      const float* right = b + (ldb == 0 ? n * inner + k * wide : k * ldb + n);
      for (int64_t m = 0; m < rows; m += kRows) {
        const Block body = find_block<Product, Transposed>(std::min<int64_t>(kRows, rows - m), wide / kLanes,
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

// The first `count` elements as bfloat16, in the high halves of words.
BERTFAST_INLINE VecU bfloat16_bits(const BFloat16* at, int count) {
  return (VecU)(count == kLanes ? load(at) : load_tail(at, count));
}
BERTFAST_INLINE VecU bfloat16_bits(const float* at, int count) {
  BFloat16 rounded[kLanes];
  store(rounded, count == kLanes ? load(at) : load_tail(at, count));
  return bfloat16_bits(rounded, kLanes);
}

// Rows [count, size] as words [ceil(count / 2), width]: word d of a row holds element d of two rows as bfloat16, the
// earlier one low. An odd last row is paired with zeros.
template <class T>
void interleave_rows(const T* from, int64_t stride, int64_t count, int64_t size, int64_t width, float* to) {
  for (int64_t i = 0; i < count; i += 2) {
    const T* low = from + i * stride;
    const T* high = i + 1 < count ? low + stride : nullptr;
    float* row = to + i / 2 * width;
    auto words = [&](int64_t d, int n) {
      return (Vec)((bfloat16_bits(low + d, n) >> 16) | (high ? bfloat16_bits(high + d, n) : VecU{}));
    };
    for_columns(
        size, [&](int64_t d) { store(row + d, words(d, kLanes)); },
        [&](int64_t d, int n) { store(row + d, words(d, n)); });
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

}  // namespace
