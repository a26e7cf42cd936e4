// One packed pre-training batch; see bertfast/data/pretraining.py.
#pragma once

#include <cstdint>

#include "corpus.h"
#include "masking.h"

namespace bertfast::data {

// Where the arrays of a batch are; each is written whole.
struct BatchArrays {
  int64_t *ids, *segments, *positions, *labels;  // [tokens]
  int64_t* masked;                               // [predictions]
  int32_t* bounds;                               // [sequences + 1]
  int64_t* next_sentence;                        // [sequences]
  int64_t tokens, sequences, predictions;
};

struct SpecialIds {
  int64_t cls, sep, pad;
};

// `rows` is [count, kColumns].
void make_batch(const Corpus& corpus, const int64_t* rows, int64_t count, const Masker& masker,
                const SpecialIds& special, uint64_t seed, uint32_t epoch, const BatchArrays& out);

}  // namespace bertfast::data
