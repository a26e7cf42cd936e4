// Samples of documents; see bertfast/data/pairs.py.
#pragma once

#include <cstdint>
#include <vector>

#include "corpus.h"

namespace bertfast::data {

struct PairOptions {
  int64_t room;          // tokens of a sample that are not special
  uint64_t short_below;  // a document whose first word is below it gets a shorter target
  bool nsp;
};

// Rows of kColumns integers.
std::vector<int64_t> make_pairs(const Corpus& corpus, const int64_t* documents, int64_t count,
                                const PairOptions& options, uint64_t seed, uint32_t epoch);

}  // namespace bertfast::data
