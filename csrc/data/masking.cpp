// Chooses words by a Fisher-Yates shuffle that stops once there are enough, then goes through the sample once to
// replace them in rising order. The draws are those of bertfast/data/masking.py, whose reference gives the same bits.
#include "masking.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "random.h"

namespace bertfast::data {
namespace {

constexpr int64_t kIgnored = -100;

bool joins(const Masker& masker, const int64_t* ids, int64_t at) {
  return at > 0 && masker.joined[ids[at]] && !masker.fixed[ids[at - 1]];
}

// Places where words begin.
void find_words(const Masker& masker, const int64_t* ids, int64_t length, std::vector<int32_t>& words) {
  words.resize(length);
  int64_t count = 0;
  for (int64_t i = 0; i < length; ++i) {
    words[count] = static_cast<int32_t>(i);
    const bool free = !masker.fixed[ids[i]];
    count += masker.whole_word ? free && !joins(masker, ids, i) : free;
  }
  words.resize(count);
}

// Writes the labels of the chosen tokens and returns how many there are.
int64_t choose(const Masker& masker, const SampleKey& key, const int64_t* ids, int64_t* labels, int64_t length,
               std::vector<int32_t>& order) {
  Stream stream(key.seed, key.epoch, kMasks, key.document, key.ordinal);
  const int64_t wanted = masker.predictions[length], words = static_cast<int64_t>(order.size());
  int64_t taken = 0;
  for (int64_t step = 0; step < words && taken < wanted; ++step) {
    std::swap(order[step], order[step + stream.below(words - step)]);
    const int64_t begin = order[step];
    int64_t end = begin + 1;
    if (masker.whole_word) {
      while (end < length && !masker.fixed[ids[end]] && joins(masker, ids, end)) ++end;
    }
    if (taken + end - begin > wanted) continue;
    for (int64_t i = begin; i < end; ++i) labels[i] = ids[i];
    taken += end - begin;
  }
  return taken;
}

}  // namespace

int64_t mask_sample(const Masker& masker, const SampleKey& key, int64_t* ids, int64_t* labels, int64_t length,
                    int64_t base, int64_t* positions, int64_t capacity, MaskScratch& scratch) {
  if (length >= static_cast<int64_t>(masker.predictions.size())) {
    throw std::invalid_argument("masking: a sample has " + std::to_string(length) +
                                " tokens, the masker was made for " + std::to_string(masker.predictions.size() - 1));
  }
  find_words(masker, ids, length, scratch.order);
  const int64_t count = choose(masker, key, ids, labels, length, scratch.order);
  if (count > capacity) {
    throw std::invalid_argument("masking: there is no room for a sample's " + std::to_string(count) + " predictions");
  }
  Stream stream(key.seed, key.epoch, kReplacements, key.document, key.ordinal);
  for (int64_t i = 0, found = 0; found < count; ++i) {
    if (labels[i] == kIgnored) continue;
    const uint64_t kind = stream.word();
    const int64_t piece = masker.replacements[stream.below(static_cast<int64_t>(masker.replacements.size()))];
    if (kind < masker.mask_below) {
      ids[i] = masker.mask_id;
    } else if (kind < masker.random_below) {
      ids[i] = piece;
    }
    positions[found++] = base + i;
  }
  return count;
}

}  // namespace bertfast::data
