// A sample is two slices of the corpus between special tokens. Each is gathered, checked, numbered and masked while it
// is in the nearest cache, and whatever of the static shape is left over is filled at the end.
#include "batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace bertfast::data {
namespace {

// Copies a slice as int64. Ids are compared unsigned, so that negative ones are too large.
template <class T>
void copy_slice(const Chunks<T>& chunks, int64_t first, int64_t length, uint32_t vocab_size, int64_t* to) {
  const T* from = chunks.slice(first, length);
  uint32_t largest = 0;
  for (int64_t i = 0; i < length; ++i) {
    largest = std::max(largest, static_cast<uint32_t>(from[i]));
    to[i] = from[i];
  }
  if (length > 0 && largest >= vocab_size) {
    const auto wrong = std::find_if(from, from + length, [&](T id) { return static_cast<uint32_t>(id) >= vocab_size; });
    throw std::out_of_range("token " + std::to_string(first + (wrong - from)) + " of the corpus has id " +
                            std::to_string(*wrong) + ", which is not in the vocabulary of " +
                            std::to_string(vocab_size) + " pieces; use the tokenizer that the corpus was built with");
  }
}

void copy_tokens(const Corpus& corpus, int64_t first, int64_t length, uint32_t vocab_size, int64_t* to) {
  if (corpus.narrow_tokens.data.empty()) {
    copy_slice(corpus.wide_tokens, first, length, vocab_size, to);
  } else {
    copy_slice(corpus.narrow_tokens, first, length, vocab_size, to);
  }
}

// Tokens of a row's sample with its special ones; a sample without B has no second [SEP].
int64_t sample_length(const int64_t* row) { return row[kALength] + row[kBLength] + 2 + (row[kBLength] > 0); }

int64_t checked_length(const int64_t* rows, int64_t count, const BatchArrays& out) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* row = rows + i * kColumns;
    // Bounds of 2^31 keep the sum from overflowing; the slices are checked where they are read.
    if (row[kALength] < 0 || row[kBLength] < 0 || row[kALength] > INT32_MAX || row[kBLength] > INT32_MAX) {
      throw std::out_of_range("row " + std::to_string(i) + " has a length that is negative or above 2^31 - 1");
    }
    tokens += sample_length(row);
  }
  if (tokens > out.tokens || count > out.sequences || tokens > INT32_MAX) {
    throw std::invalid_argument(std::to_string(count) + " samples of " + std::to_string(tokens) +
                                " tokens do not fit into a batch of " + std::to_string(out.sequences) + " samples, " +
                                std::to_string(out.tokens) + " tokens");
  }
  return tokens;
}

}  // namespace

void make_batch(const Corpus& corpus, const int64_t* rows, int64_t count, const Masker& masker,
                const SpecialIds& special, uint64_t seed, uint32_t epoch, const BatchArrays& out) {
  const int64_t tokens = checked_length(rows, count, out);
  const auto vocab_size = static_cast<uint32_t>(masker.fixed.size());
  std::fill(out.labels, out.labels + out.tokens, int64_t{-100});
  MaskScratch scratch;
  int64_t begin = 0, masked = 0;
  out.bounds[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* row = rows + i * kColumns;
    const int64_t length = sample_length(row), middle = row[kALength] + 2;
    int64_t* ids = out.ids + begin;
    ids[0] = special.cls;
    copy_tokens(corpus, row[kAFirst], row[kALength], vocab_size, ids + 1);
    ids[middle - 1] = special.sep;
    if (row[kBLength] > 0) {
      copy_tokens(corpus, row[kBFirst], row[kBLength], vocab_size, ids + middle);
      ids[length - 1] = special.sep;
    }
    std::fill(out.segments + begin, out.segments + begin + middle, int64_t{0});
    std::fill(out.segments + begin + middle, out.segments + begin + length, int64_t{1});
    for (int64_t j = 0; j < length; ++j) out.positions[begin + j] = j;
    const SampleKey key{seed, epoch, static_cast<uint32_t>(row[kDocument]), static_cast<uint32_t>(row[kOrdinal])};
    masked += mask_sample(masker, key, ids, out.labels + begin, length, begin, out.masked + masked,
                          out.predictions - masked, scratch);
    out.next_sentence[i] = row[kLabel];
    out.bounds[i + 1] = static_cast<int32_t>(begin += length);
  }
  std::fill(out.ids + tokens, out.ids + out.tokens, special.pad);
  std::fill(out.segments + tokens, out.segments + out.tokens, int64_t{0});
  std::fill(out.positions + tokens, out.positions + out.tokens, int64_t{0});
  std::fill(out.masked + masked, out.masked + out.predictions, int64_t{-1});
  std::fill(out.bounds + count + 1, out.bounds + out.sequences + 1, static_cast<int32_t>(tokens));
  std::fill(out.next_sentence + count, out.next_sentence + out.sequences, int64_t{-1});
}

}  // namespace bertfast::data
