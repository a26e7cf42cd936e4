// Philox 4x32-7 dropout bits, the scheme of bertfast/ops/rng.py, kLanes counters at a time.
#pragma once

#include "vec.h"

namespace {

struct Rng {
  uint32_t key0, key1, offset;
};

BERTFAST_INLINE void multiply(VecU a, uint32_t constant, VecU& high, VecU& low) {
  const VecU64 product = __builtin_convertvector(a, VecU64) * static_cast<uint64_t>(constant);
  high = __builtin_convertvector(product >> 32, VecU);
  low = a * constant;
}

// c0 is per lane, the other counter words are shared; `words` receives four vectors.
BERTFAST_INLINE void philox(const Rng& rng, VecU c0, uint32_t c1, uint32_t c2, VecU words[4]) {
  VecU x0 = c0, x1 = VecU{} + c1, x2 = VecU{} + c2, x3 = VecU{} + rng.offset;
  uint32_t key0 = rng.key0, key1 = rng.key1;
  for (int round = 0; round < 7; ++round) {
    VecU high0, low0, high1, low1;
    multiply(x0, 0xD2511F53u, high0, low0);
    multiply(x2, 0xCD9E8D57u, high1, low1);
    const VecU y0 = high1 ^ x1 ^ key0;
    const VecU y2 = high0 ^ x3 ^ key1;
    x0 = y0;
    x1 = low1;
    x2 = y2;
    x3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
}

// Words of counters first, first + 1, ..., four after another, as the scheme numbers halves and bytes (little endian).
BERTFAST_INLINE void philox_words(const Rng& rng, int64_t first, uint32_t c1, uint32_t c2, uint32_t* out) {
  VecU counters;
  for (int lane = 0; lane < kLanes; ++lane) counters[lane] = static_cast<uint32_t>(first + lane);
  VecU words[4];
  philox(rng, counters, c1, c2, words);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int w = 0; w < 4; ++w) out[lane * 4 + w] = words[w][lane];
  }
}

// Multipliers of one row of a [rows, cols] matrix: 1 / keep rate where kept, 0 where dropped. `scale` holds
// cols rounded up to kLanes * 8 floats.
inline void dropout_row(const Rng& rng, int64_t row, int64_t cols, uint32_t threshold, float inverse_keep,
                        float* scale) {
  uint32_t words[kLanes * 4];
  uint16_t halves[kLanes * 8];
  for (int64_t c = 0; c < cols; c += kLanes * 8) {
    philox_words(rng, c / 8, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), words);
    std::memcpy(halves, words, sizeof(words));
    for (int i = 0; i < kLanes * 8; ++i) scale[c + i] = halves[i] >= threshold ? inverse_keep : 0.0f;
  }
}

// The same for one query's row of attention probabilities. `scale` holds keys rounded up to kLanes * 16 floats.
inline void dropout_attention_row(const Rng& rng, uint32_t query, uint32_t batch_head, int64_t keys, uint32_t threshold,
                                  float inverse_keep, float* scale) {
  uint32_t words[kLanes * 4];
  uint8_t bytes[kLanes * 16];
  for (int64_t c = 0; c < keys; c += kLanes * 16) {
    philox_words(rng, c / 16, query, batch_head, words);
    std::memcpy(bytes, words, sizeof(words));
    for (int i = 0; i < kLanes * 16; ++i) scale[c + i] = bytes[i] >= threshold ? inverse_keep : 0.0f;
  }
}

}  // namespace
