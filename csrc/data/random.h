// The data pipeline's draws: Philox 4x32-10 named by (seed, epoch, purpose, sample, ordinal), as
// bertfast/data/random.py writes it down. One stream at a time: a sample needs few draws, so lanes of counters as in
// cpu/philox.h would idle.
#pragma once

#include <cstdint>

namespace bertfast::data {

enum Purpose : uint32_t { kPairs = 1, kMasks = 3, kReplacements = 4 };

constexpr uint64_t kHalf = uint64_t{1} << 31;  // a word is below it with probability 1/2

class Stream {
 public:
  Stream(uint64_t seed, uint32_t epoch, uint32_t purpose, uint32_t sample, uint32_t ordinal)
      : key0_(static_cast<uint32_t>(seed)),
        key1_(static_cast<uint32_t>(seed >> 32)),
        kind_(purpose | ordinal << 8),
        sample_(sample),
        epoch_(epoch) {}

  uint32_t word() {
    if (next_ == 4) {
      philox();
      next_ = 0;
      ++block_;
    }
    return words_[next_++];
  }

  // An integer in [0, n), n <= 2^32 - 1.
  int64_t below(int64_t n) { return static_cast<int64_t>(uint64_t{word()} * static_cast<uint64_t>(n) >> 32); }

 private:
  void philox() {
    uint32_t x0 = block_, x1 = kind_, x2 = sample_, x3 = epoch_, key0 = key0_, key1 = key1_;
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t{x0} * 0xD2511F53u, product1 = uint64_t{x2} * 0xCD9E8D57u;
      x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
      x1 = static_cast<uint32_t>(product1);
      x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
      x3 = static_cast<uint32_t>(product0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    words_[0] = x0;
    words_[1] = x1;
    words_[2] = x2;
    words_[3] = x3;
  }

  uint32_t key0_, key1_, kind_, sample_, epoch_;
  uint32_t block_ = 0, words_[4];
  int next_ = 4;
};

}  // namespace bertfast::data
