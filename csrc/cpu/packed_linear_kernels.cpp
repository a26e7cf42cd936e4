// A panel of the weight, some rows of x: the inner dimension in blocks of 64 or 128 KB of the panel, which stay in the
// second-level cache while the register block walks down the rows; while it does, the next block is prefetched, so a
// handful of rows runs at the rate of memory. Sums of one block are short chains, which keeps float's rounding below
// that of a running sum over the whole dimension; between blocks they wait in scratch. The last block meets scale, bias
// and GELU on its way out.
#include "packed_linear_kernels.h"

#include <algorithm>

#include "attention_products.h"
#include "gelu_math.h"

namespace bertfast {
namespace {

// Where so few register blocks cover all rows, blocks of the panel that fit the first-level cache are up to 5 % faster.
constexpr int64_t kFew = 3, kShortBlock = 64;
constexpr int kLine = 16;                                    // words of a cache line
constexpr int kLines = kPanel < kLine ? 1 : kPanel / kLine;  // of a panel's row

// kBlock: words of the inner dimension in a block.
struct FloatWords : FloatProduct {
  static constexpr int64_t kBlock = 256;
  BERTFAST_INLINE static Vec join(Vec a, Vec b) { return a + b; }
};

#if defined(__AVX512BF16__)
struct PairWords : PairProduct {
  static constexpr int64_t kBlock = 512;
  BERTFAST_INLINE static Vec join(Vec a, Vec b) { return a + b; }
};

// Four products of an unsigned byte (x) and a signed one (weight), added to a 32-bit integer, exactly.
struct ByteWords {
  static constexpr int64_t kBlock = 512;
  BERTFAST_INLINE static Vec add(Vec total, const float* left, Vec right) {
    int word;
    std::memcpy(&word, left, sizeof(word));
    // By the intrinsic, GCC 12 stores every sum on every step, at half the rate: it will not keep integers in an array
    // of float vectors, nor such an array of integers, in registers.
    asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(_mm512_set1_epi32(word)), "v"(right));
    return total;
  }
  BERTFAST_INLINE static Vec join(Vec a, Vec b) { return (Vec)((VecI)a + (VecI)b); }
};
#endif

// c [R, panel] (+)= a [R, steps] b [steps, panel], fetching P lines of `next` a step.
template <class Words, int R, int P>
void block_product(int64_t steps, const float* a, int64_t lda, const float* b, float* c, bool accumulate,
                   const float* next) {
  Vec total[R][kVectors];
  BERTFAST_UNROLL
  for (int r = 0; r < R; ++r) {
    BERTFAST_UNROLL
    for (int v = 0; v < kVectors; ++v) total[r][v] = Vec{};
  }
  for (int64_t k = 0; k < steps; ++k) {
    Vec right[kVectors];
    BERTFAST_UNROLL
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + k * kPanel + v * kLanes);
    BERTFAST_UNROLL
    for (int p = 0; p < P; ++p) __builtin_prefetch(next + (k * P + p) * kLine, 0, 2);
    BERTFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      BERTFAST_UNROLL
      for (int v = 0; v < kVectors; ++v) total[r][v] = Words::add(total[r][v], a + r * lda + k, right[v]);
    }
  }
  BERTFAST_UNROLL
  for (int r = 0; r < R; ++r) {
    BERTFAST_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* at = c + r * kPanel + v * kLanes;
      store(at, accumulate ? Words::join(load(at), total[r][v]) : total[r][v]);
    }
  }
}

using BlockProduct = void (*)(int64_t, const float*, int64_t, const float*, float*, bool, const float*);

template <class Words, int P, size_t... I>
BlockProduct find_rows(int64_t rows, std::index_sequence<I...>) {
  static constexpr BlockProduct kTable[] = {block_product<Words, I + 1, P>...};
  return kTable[rows - 1];
}

template <class Words>
BlockProduct find_product(int64_t rows, int64_t lines) {
  const auto all = std::make_index_sequence<kRows>();
  if (lines == 0) return find_rows<Words, 0>(rows, all);
  if (lines == 1) return find_rows<Words, 1>(rows, all);
  return lines == 2 ? find_rows<Words, std::min(2, kLines)>(rows, all) : find_rows<Words, kLines>(rows, all);
}

// Words [steps, panel] of two bfloat16 as floats [2 steps, panel].
void widen_block(const float* words, int64_t steps, float* to) {
  for (int64_t k = 0; k < steps; ++k, words += kPanel, to += 2 * kPanel) {
    for (int64_t c = 0; c < kPanel; c += kLanes) {
      const VecU pair = (VecU)load(words + c);
      store(to + c, (Vec)(pair << 16));
      store(to + kPanel + c, (Vec)(pair & 0xFFFF0000u));
    }
  }
}

void widen(const void* bfloat16, int64_t count, float* to) {
  const BFloat16* from = static_cast<const BFloat16*>(bfloat16);
  for_columns(
      count, [&](int64_t i) { store(to + i, load(from + i)); },
      [&](int64_t i, int n) { store_tail(to + i, load_tail(from + i, n), n); });
}

// Scale, bias and activation of up to kLanes columns of one row.
template <bool kBytes>
BERTFAST_INLINE Vec finish(const PackedProduct& p, int64_t row, int64_t column, int columns, Vec total) {
  auto of = [&](const float* from) {
    return columns == kLanes ? load(from + column) : load_tail(from + column, columns);
  };
  if (kBytes) {
    total = __builtin_convertvector((VecI)total, Vec) * p.x_scale[row] + of(p.w_sum) * p.x_low[row];
    total = total * of(p.w_scale);
  }
  if (p.bias != nullptr) total += of(p.bias);
  if (p.activation == 1) return gelu_value<false>(total);
  return p.activation == 2 ? gelu_value<true>(total) : total;
}

template <class T, bool kBytes>
void write_rows(const PackedProduct& p, int64_t first, int64_t row, int64_t count, const float* from) {
  const int64_t width = std::min(kPanel, p.outputs - first);
  for (int64_t r = 0; r < count; ++r) {
    T* to = static_cast<T*>(p.y) + (row + r) * p.y_stride + first;
    for_columns(
        width,
        [&](int64_t c) { store(to + c, finish<kBytes>(p, row + r, first + c, kLanes, load(from + r * kPanel + c))); },
        [&](int64_t c, int n) {
          store_tail(to + c, finish<kBytes>(p, row + r, first + c, n, load(from + r * kPanel + c)), n);
        });
  }
}

template <class Words, bool kBytes, bool kWidened = false>
void run(const PackedProduct& p, int64_t panel_index, int64_t row, int64_t count, float* scratch) {
  constexpr int64_t kEach = kWidened ? 2 : 1;  // steps for each word of the weights
  constexpr int64_t kFetch = std::max<int64_t>(1, kLines / kEach);
  const float* x = static_cast<const float*>(p.x);
  const float* panel = p.weights + panel_index * p.words * kPanel;
  const int64_t blocks = (count + kRows - 1) / kRows;
  const int64_t size = (blocks <= kFew ? kShortBlock : Words::kBlock) / kEach, pieces = (p.words + size - 1) / size;
  const int64_t lines = blocks >= kFetch ? 1 : (kFetch + blocks - 1) / blocks;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = p.words * piece / pieces, end = p.words * (piece + 1) / pieces;
    const int64_t steps = (end - begin) * kEach;
    const float *block = panel + begin * kPanel, *next = panel + end * kPanel;
    if (kWidened) {
      float* widened = scratch + count * kPanel;
      widen_block(block, end - begin, widened);
      block = widened;
    }
    for (int64_t i = 0, at = 0; i < blocks; ++i) {
      const int64_t rows = (count - at + blocks - i - 1) / (blocks - i);
      const int64_t fetch = i * lines < kFetch ? lines : 0;
      find_product<Words>(rows, fetch)(steps, x + (row + at) * p.x_stride + begin * kEach, p.x_stride, block,
                                       scratch + at * kPanel, piece > 0, next + i * lines * steps * kLine);
      if (piece == pieces - 1) {
        const int64_t first = panel_index * kPanel;
        const float* sums = scratch + at * kPanel;
        p.y_bfloat16 ? write_rows<BFloat16, kBytes>(p, first, row + at, rows, sums)
                     : write_rows<float, kBytes>(p, first, row + at, rows, sums);
      }
      at += rows;
    }
  }
}

// Column by column through the transposition of gather_panels: rows of `words` are the columns of a panel.
void pack(const float* words, int64_t outputs, int64_t inner, float* to) {
  for (int64_t first = 0; first < outputs; first += kPanel) {
    gather_panels(words + first * inner, inner, std::min(kPanel, outputs - first), inner, kPanel, to + first * inner);
  }
}

#if defined(__AVX512BF16__)
typedef uint8_t VecBytes __attribute__((vector_size(kLanes)));

template <class T>
void quantize_rows(const T* x, int64_t rows, int64_t cols, uint8_t* to, float* scale, float* low) {
  const Vec magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to the nearest integer in the low bits
  for (int64_t r = 0; r < rows; ++r, x += cols, to += cols) {
    Vec least = splat(to_float(x[0])), largest = least, poison = Vec{};
    auto look = [&](Vec v) {
      least = vmin(least, v);
      largest = vmax(largest, v);
      poison += v * 0.0f;  // NaN from NaN and from infinity, which no step stands for; else 0
    };
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) look(load(x + c));
    for (; c < cols; ++c) look(splat(to_float(x[c])));
    const float bottom = -max_of(-least), range = max_of(largest) - bottom;
    const float inverse = range > 0.0f ? 255.0f / range : 0.0f;
    scale[r] = range / 255.0f + sum(poison);
    low[r] = bottom;
    auto bytes = [&](Vec v) {
      return __builtin_convertvector((VecI)((v - bottom) * inverse + magic) - (VecI)magic, VecBytes);
    };
    for_columns(
        cols,
        [&](int64_t at) {
          const VecBytes q = bytes(load(x + at));
          std::memcpy(to + at, &q, sizeof(q));
        },
        [&](int64_t at, int n) {
          const VecBytes q = bytes(load_tail(x + at, n));
          std::memcpy(to + at, &q, n);
        });
  }
}

void quantize(const void* x, bool bfloat16, int64_t rows, int64_t cols, uint8_t* to, float* scale, float* low) {
  bfloat16 ? quantize_rows(static_cast<const BFloat16*>(x), rows, cols, to, scale, low)
           : quantize_rows(static_cast<const float*>(x), rows, cols, to, scale, low);
}
#endif

}  // namespace

constexpr auto kRunFloat = run<FloatWords, false>;
constexpr auto kRunWidened = run<FloatWords, false, true>;

#if defined(__AVX512BF16__)
const PackedLinearKernels BERTFAST_TABLE(packed_linear) = {
    kPanel,
    kRows,
    FloatWords::kBlock * kPanel,
    pack,
    {kRunFloat, run<PairWords, false>, run<ByteWords, true>, kRunWidened},
    quantize,
    widen};
#elif defined(__AVX2__)
const PackedLinearKernels BERTFAST_TABLE(packed_linear) = {
    kPanel, kRows, FloatWords::kBlock * kPanel, pack, {kRunFloat, nullptr, nullptr, kRunWidened}, nullptr, widen};
#else
const PackedLinearKernels BERTFAST_TABLE(packed_linear) = {};
#endif

}  // namespace bertfast
