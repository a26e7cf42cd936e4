#include "product_kernels.h"

#include <algorithm>

#include "attention_products.h"

namespace bertfast {
namespace {

// Lines [first, first + count) of a side that is not across, [lines, inner], as [words, kPanel].
void gather_lines(const ProductSide& side, int64_t first, int64_t count, float* to) {
  const int64_t each = side.pairs ? 2 : 1, stride = side.stride / each, words = side.inner / each;
#if defined(__AVX512BF16__)
  if (side.pairs && side.storage == kFloatStorage) {
    gather_panels(static_cast<const FloatPair*>(side.from) + first * stride, stride, count, words, kPanel, to);
    return;
  }
#endif
  // A float is a word, and so are two bfloat16, which no instruction here reads as the float they are not.
  gather_panels(static_cast<const float*>(side.from) + first * stride, stride, count, words, kPanel, to);
}

// Lines [first, first + count) of a side that is across, [inner, lines], as [words, kPanel].
template <class T>
void copy_lines(const ProductSide& side, int64_t first, int64_t count, float* to) {
  const T* from = static_cast<const T*>(side.from) + first;
  const int64_t words = side.pairs ? (side.inner + 1) / 2 : side.inner;
  if (count < kPanel) std::memset(to, 0, words * kPanel * sizeof(float));
  if (side.pairs) {
    interleave_rows(from, side.stride, side.inner, count, kPanel, to);
  } else {
    gather(from, side.stride, side.inner, count, kPanel, 1.0f, to);
  }
}

void pack_panel(const ProductSide& side, int64_t first, float* to) {
  const int64_t count = std::min(kPanel, side.lines - first);
  if (!side.across) {
    gather_lines(side, first, count, to);
  } else if (side.storage == kFloatStorage) {
    copy_lines<float>(side, first, count, to);
  } else {
    copy_lines<BFloat16>(side, first, count, to);
  }
}

void turn_lines(const ProductSide& side, int64_t first, float* scratch, float* to, int64_t to_stride) {
  const int64_t count = std::min(kPanel, side.lines - first);
  pack_panel(side, first, scratch);
  const int64_t words = side.pairs ? (side.inner + 1) / 2 : side.inner;
  for (int64_t w = 0; w < words; w += kLanes) {
    const int wide = static_cast<int>(std::min<int64_t>(kLanes, words - w));
    for (int64_t c = 0; c < count; c += kLanes) {
      Vec tile[kLanes];
      for (int i = 0; i < kLanes; ++i) tile[i] = i < wide ? load(scratch + (w + i) * kPanel + c) : Vec{};
      transpose(tile);
      const int64_t rows = std::min<int64_t>(kLanes, count - c);
      for (int64_t r = 0; r < rows; ++r) {
        float* at = to + (c + r) * to_stride + w;
        wide == kLanes ? store(at, tile[r]) : store_tail(at, tile[r], wide);
      }
    }
  }
}

}  // namespace

#if defined(__AVX512BF16__)
const ProductKernels BERTFAST_TABLE(product) = {kPanel, true, pack_panel, turn_lines};
#elif defined(__AVX2__)
const ProductKernels BERTFAST_TABLE(product) = {kPanel, false, pack_panel, turn_lines};
#else
const ProductKernels BERTFAST_TABLE(product) = {};
#endif

}  // namespace bertfast
