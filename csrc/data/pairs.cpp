// Sentence pairs as Google's create_pretraining_data.py makes them, one document after another, each with its own
// stream: bertfast/data/pairs.py says what and why, and its reference gives the same rows.
#include "pairs.h"

#include "random.h"

namespace bertfast::data {
namespace {

struct Segment {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Where each sentence begins in the corpus, and where the last one ends.
void sentence_bounds(const Corpus& corpus, int64_t document, std::vector<int64_t>& bounds) {
  if (document < 0 || document >= corpus.documents) {
    throw std::out_of_range("document " + std::to_string(document) + " is not among the corpus's " +
                            std::to_string(corpus.documents));
  }
  const int64_t first = corpus.document_sentences[document];
  const int64_t count = corpus.document_sentences[document + 1] - first;
  const int32_t* lengths = corpus.lengths.slice(first, count);
  int64_t at = corpus.document_tokens[document];
  const int64_t end = corpus.document_tokens[document + 1], tokens = end - at;
  bool positive = count > 0;
  bounds.clear();
  bounds.push_back(at);
  for (int64_t i = 0; i < count; ++i) {
    positive &= lengths[i] > 0;
    bounds.push_back(at += lengths[i]);
  }
  if (at != end || !positive) {
    throw std::invalid_argument("the sentence lengths of document " + std::to_string(document) +
                                " are not all positive or do not add up to its " + std::to_string(tokens) +
                                " tokens: the corpus is damaged; build it again");
  }
}

class Maker {
 public:
  Maker(const Corpus& corpus, const PairOptions& options, uint64_t seed, uint32_t epoch)
      : corpus_(corpus), options_(options), seed_(seed), epoch_(epoch) {}

  void add(int64_t document) {
    Stream stream(seed_, epoch_, kPairs, static_cast<uint32_t>(document), 0);
    sentence_bounds(corpus_, document, bounds_);
    document_ = document;
    ordinal_ = 0;
    const int64_t target = stream.word() < options_.short_below ? 2 + stream.below(options_.room - 1) : options_.room;
    options_.nsp ? pairs(target, stream) : segments(target);
  }

  std::vector<int64_t> rows;

 private:
  void emit(Segment a, Segment b, int64_t label) {
    rows.insert(rows.end(), {document_, ordinal_++, a.begin, a.size(), b.begin, b.size(), label});
  }

  void pairs(int64_t target, Stream& stream) {
    const int64_t sentences = static_cast<int64_t>(bounds_.size()) - 1;
    for (int64_t first = 0; first < sentences;) {
      int64_t end = first + 1;
      // Two at least: a chunk of one could only be NotNext, and truncation is there for what is too long.
      while (end < sentences && (end == first + 1 || bounds_[end] - bounds_[first] < target)) ++end;
      const int64_t middle = end - first == 1 ? end : first + 1 + stream.below(end - first - 1);
      Segment a{bounds_[first], bounds_[middle]}, b{bounds_[middle], bounds_[end]};
      int64_t label = 0;
      if (corpus_.documents > 1 && (end - first == 1 || stream.word() < kHalf)) {
        b = random_segment(target - a.size(), stream);
        label = 1;
        end = middle;  // the chunk's rest goes back
      } else if (b.size() == 0) {
        label = -1;
      }
      truncate(a, b, stream);
      emit(a, b, label);
      first = end;
    }
  }

  Segment random_segment(int64_t target, Stream& stream) {
    const int64_t other = stream.below(corpus_.documents - 1);
    sentence_bounds(corpus_, other + (other >= document_), other_bounds_);
    const int64_t sentences = static_cast<int64_t>(other_bounds_.size()) - 1;
    const int64_t first = stream.below(sentences);
    int64_t end = first + 1;
    while (end < sentences && other_bounds_[end] - other_bounds_[first] < target) ++end;
    return {other_bounds_[first], other_bounds_[end]};
  }

  // One draw for each token that goes; B is the longer of equals.
  void truncate(Segment& a, Segment& b, Stream& stream) const {
    while (a.size() + b.size() > options_.room) {
      Segment& longer = a.size() > b.size() ? a : b;
      stream.word() < kHalf ? ++longer.begin : --longer.end;
    }
  }

  void segments(int64_t target) {
    size_t sentence = 0;
    for (int64_t first = bounds_[0]; first < bounds_.back();) {
      while (sentence + 1 < bounds_.size() && bounds_[sentence + 1] <= first + target) ++sentence;
      const int64_t end = bounds_[sentence] > first ? bounds_[sentence] : first + target;
      emit({first, end}, {end, end}, -1);
      first = end;
    }
  }

  const Corpus& corpus_;
  const PairOptions& options_;
  const uint64_t seed_;
  const uint32_t epoch_;
  int64_t document_ = 0, ordinal_ = 0;
  std::vector<int64_t> bounds_, other_bounds_;
};

}  // namespace

std::vector<int64_t> make_pairs(const Corpus& corpus, const int64_t* documents, int64_t count,
                                const PairOptions& options, uint64_t seed, uint32_t epoch) {
  if (options.room < 2) throw std::invalid_argument("pairs: a sample must have room for at least 2 tokens");
  Maker maker(corpus, options, seed, epoch);
  for (int64_t i = 0; i < count; ++i) maker.add(documents[i]);
  return std::move(maker.rows);
}

}  // namespace bertfast::data
