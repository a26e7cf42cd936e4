// A corpus as C++ sees it: pointers into memory-mapped Arrow chunks, numbered through. Every read is checked against
// its chunk first, because rows and bounds come from Python and from files. See bertfast/data/corpus.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bertfast::data {

// Columns of a row, bertfast/data/pairs.py.
enum Column { kDocument, kOrdinal, kAFirst, kALength, kBFirst, kBLength, kLabel, kColumns };

template <class T>
struct Chunks {
  std::vector<const T*> data;
  std::vector<int64_t> first{0};  // one more than chunks

  void add(const T* values, int64_t count) {
    data.push_back(values);
    first.push_back(first.back() + count);
  }

  // Values begin to begin + length; out_of_range where they are not all in one chunk.
  const T* slice(int64_t begin, int64_t length) const {
    const auto chunk = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    if (begin < 0 || length < 0 || chunk >= static_cast<int64_t>(data.size()) || length > first[chunk + 1] - begin) {
      throw std::out_of_range(std::to_string(length) + " values from " + std::to_string(begin) +
                              " on are not within one chunk of the corpus");
    }
    return data[chunk] + (begin - first[chunk]);
  }
};

struct Corpus {
  // One of the two holds the ids.
  Chunks<uint16_t> narrow_tokens;
  Chunks<int32_t> wide_tokens;
  Chunks<int32_t> lengths;
  const int64_t* document_tokens = nullptr;     // [documents + 1]
  const int64_t* document_sentences = nullptr;  // [documents + 1]
  int64_t documents = 0;
};

}  // namespace bertfast::data
