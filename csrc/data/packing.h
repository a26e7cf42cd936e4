// Best-fit packing; see bertfast/data/packing.py.
#pragma once

#include <cstdint>

namespace bertfast::data {

// batch_of[samples] for samples of 1 to `budget` tokens, placed in the order of `order`, a permutation.
void best_fit(const int64_t* lengths, const int64_t* order, int64_t samples, int64_t budget, int64_t max_sequences,
              int64_t* batch_of);

}  // namespace bertfast::data
