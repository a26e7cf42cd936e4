// The vector type of the build being compiled: 16, 8 or 4 floats of GCC's vector extension, so one kernel source serves
// AVX-512, AVX2 and any other processor. bfloat16 is storage only: loads widen to float, stores round to nearest even.
// Only *_kernels.cpp include this; everything has internal linkage so that builds cannot be mixed by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint64_t VecU64 __attribute__((vector_size(kLanes * 8)));
typedef uint16_t VecU16 __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

#define BERTFAST_INLINE inline __attribute__((always_inline))
// Before a short loop of constant length. Without it GCC 12 keeps an array of accumulators in memory around the loop it
// is used in, and zeroing and spilling it costs a tenth of a small block product.
#define BERTFAST_UNROLL _Pragma("GCC unroll 8")

BERTFAST_INLINE Vec splat(float value) { return Vec{} + value; }

BERTFAST_INLINE float to_float(float value) { return value; }
BERTFAST_INLINE float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

BERTFAST_INLINE void put(float* at, float value) { *at = value; }
BERTFAST_INLINE void put(BFloat16* at, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  // A NaN must stay one: rounding could carry it into infinity.
  at->bits = value != value ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

BERTFAST_INLINE Vec load(const float* at) {
  Vec v;
  std::memcpy(&v, at, sizeof(v));
  return v;
}
BERTFAST_INLINE Vec load(const BFloat16* at) {
  VecU16 raw;
  std::memcpy(&raw, at, sizeof(raw));
  return (Vec)(__builtin_convertvector(raw, VecU) << 16);
}

BERTFAST_INLINE void store(float* at, Vec v) { std::memcpy(at, &v, sizeof(v)); }
#if defined(__AVX512BF16__)
BERTFAST_INLINE void store(BFloat16* at, Vec v) {
  const __m256bh raw = _mm512_cvtneps_pbh((__m512)v);  // rounds as below, but takes numbers under 1.2e-38 for zero
  std::memcpy(at, &raw, sizeof(raw));
}
#else
BERTFAST_INLINE void store(BFloat16* at, Vec v) {
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const VecU quiet = VecU{} + 0x7FC0;
  const VecU16 raw = __builtin_convertvector(v == v ? rounded : quiet, VecU16);
  std::memcpy(at, &raw, sizeof(raw));
}
#endif

// The first `count` lanes; the others are zero, and no memory past them is touched.
template <class T>
BERTFAST_INLINE Vec load_tail(const T* at, int count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, at, count * sizeof(T));
  return load(buffer);
}
template <class T>
BERTFAST_INLINE void store_tail(T* at, Vec v, int count) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(at, buffer, count * sizeof(T));
}

BERTFAST_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
BERTFAST_INLINE Vec vmin(Vec a, Vec b) { return a < b ? a : b; }

// Fixed order, so the same bits on every call. Lanes are added as a tree.
BERTFAST_INLINE float sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
BERTFAST_INLINE float max_of(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
}

// Calls body(col, count) over [0, cols): count is kLanes for whole vectors (a constant after inlining), less for the
// tail.
template <class Whole, class Tail>
BERTFAST_INLINE void for_columns(int64_t cols, Whole&& whole, Tail&& tail) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) whole(c);
  if (c < cols) tail(c, static_cast<int>(cols - c));
}

}  // namespace
