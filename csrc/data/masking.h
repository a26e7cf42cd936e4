// Masked-word targets of one sample; see bertfast/data/masking.py.
#pragma once

#include <cstdint>
#include <vector>

namespace bertfast::data {

// The rule as tables, made by bertfast.data.masking.Masker.
struct Masker {
  std::vector<int64_t> predictions;   // by a sample's length
  std::vector<uint8_t> fixed;         // by id: 1 is never chosen
  std::vector<uint8_t> joined;        // by id: 1 belongs to the word of the token before
  std::vector<int64_t> replacements;  // never empty
  int64_t mask_id;
  uint64_t mask_below, random_below;
  bool whole_word;  // whether any id is joined
};

// What names a sample's streams.
struct SampleKey {
  uint64_t seed;
  uint32_t epoch, document, ordinal;
};

// Holds what a sample needs while it is masked, from one to the next.
struct MaskScratch {
  std::vector<int32_t> order;
};

// Masks ids[0, length) in place. labels[0, length) must be -100 and gets the pieces that were there; returns how many,
// and writes their places plus `base` to `positions`, rising, of which there are `capacity`. Ids must be in the
// vocabulary.
int64_t mask_sample(const Masker& masker, const SampleKey& key, int64_t* ids, int64_t* labels, int64_t length,
                    int64_t base, int64_t* positions, int64_t capacity, MaskScratch& scratch);

}  // namespace bertfast::data
