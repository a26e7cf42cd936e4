// NumPy arrays in and out of the data pipeline's kernels. Inputs are checked for dtype and shape here and for their
// values in the kernels; outputs are allocated before the interpreter's lock is let go. Python's twins, which are what
// these mean, are in bertfast/data.
#include "bind.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "batch.h"
#include "packing.h"
#include "pairs.h"
#include "random.h"

namespace py = pybind11;

namespace bertfast::data {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void demand(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

template <class T>
void add_chunks(const std::vector<py::array>& arrays, Chunks<T>& chunks, const char* message) {
  for (const py::array& array : arrays) {
    demand(py::isinstance<Array<T>>(array) && array.ndim() == 1, message);
    chunks.add(static_cast<const T*>(array.data()), array.size());
  }
}

// Keeps the arrays alive that `corpus` points into.
struct BoundCorpus {
  BoundCorpus(std::vector<py::array> tokens, std::vector<py::array> lengths, Array<int64_t> document_tokens,
              Array<int64_t> document_sentences)
      : tokens(std::move(tokens)),
        lengths(std::move(lengths)),
        document_tokens(std::move(document_tokens)),
        document_sentences(std::move(document_sentences)) {
    const char* message = "corpus: token chunks must be contiguous uint16 or int32 arrays, all of one dtype";
    if (!this->tokens.empty() && py::isinstance<Array<uint16_t>>(this->tokens[0])) {
      add_chunks(this->tokens, corpus.narrow_tokens, message);
    } else {
      add_chunks(this->tokens, corpus.wide_tokens, message);
    }
    add_chunks(this->lengths, corpus.lengths, "corpus: length chunks must be contiguous int32 arrays");
    demand(this->document_tokens.ndim() == 1 && this->document_sentences.ndim() == 1 &&
               this->document_tokens.size() == this->document_sentences.size() && this->document_tokens.size() > 0,
           "corpus: document bounds must be int64 arrays of documents + 1");
    corpus.document_tokens = this->document_tokens.data();
    corpus.document_sentences = this->document_sentences.data();
    corpus.documents = this->document_tokens.size() - 1;
  }

  std::vector<py::array> tokens, lengths;
  Array<int64_t> document_tokens, document_sentences;
  Corpus corpus;
};

struct BoundMasker {
  Masker masker;
  SpecialIds special;
};

template <class T>
std::vector<T> values(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

BoundMasker make_masker(const Array<int64_t>& predictions, const Array<uint8_t>& fixed, const Array<uint8_t>& joined,
                        const Array<int64_t>& replacements, std::tuple<int64_t, int64_t, int64_t, int64_t> ids,
                        uint64_t mask_below, uint64_t random_below) {
  const auto [cls, sep, pad, mask] = ids;
  const int64_t vocab_size = fixed.size();
  demand(joined.size() == vocab_size && replacements.size() > 0 && predictions.size() > 0, "masker: tables differ");
  for (const int64_t id : {cls, sep, pad, mask}) demand(id >= 0 && id < vocab_size, "masker: id not in the vocabulary");
  for (const int64_t id : values(replacements)) {
    demand(id >= 0 && id < vocab_size, "masker: replacement not in the vocabulary");
  }
  const std::vector<uint8_t> continuations = values(joined);
  const bool whole_word = std::count(continuations.begin(), continuations.end(), 0) != vocab_size;
  return {{values(predictions), values(fixed), continuations, values(replacements), mask, mask_below, random_below,
           whole_word},
          {cls, sep, pad}};
}

Array<uint32_t> words(uint64_t seed, uint32_t epoch, uint32_t purpose, uint32_t sample, int64_t count) {
  demand(count >= 0, "words: count is negative");
  Array<uint32_t> out(count);
  uint32_t* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  Stream stream(seed, epoch, purpose, sample, 0);
  for (int64_t i = 0; i < count; ++i) to[i] = stream.word();
  return out;
}

Array<int64_t> bound_best_fit(const Array<int64_t>& lengths, const Array<int64_t>& order, int64_t budget,
                              int64_t max_sequences) {
  demand(lengths.size() == order.size(), "packing: order must be as long as lengths");
  Array<int64_t> out(lengths.size());
  int64_t* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  best_fit(lengths.data(), order.data(), lengths.size(), budget, max_sequences, to);
  return out;
}

Array<int64_t> bound_pairs(const BoundCorpus& self, const Array<int64_t>& documents, int64_t room, uint64_t short_below,
                           bool nsp, uint64_t seed, uint32_t epoch) {
  std::vector<int64_t> rows;
  {
    const py::gil_scoped_release unlocked;
    rows = make_pairs(self.corpus, documents.data(), documents.size(), {room, short_below, nsp}, seed, epoch);
  }
  Array<int64_t> out({static_cast<int64_t>(rows.size()) / kColumns, int64_t{kColumns}});
  std::memcpy(out.mutable_data(), rows.data(), rows.size() * sizeof(int64_t));
  return out;
}

py::tuple bound_batch(const BoundCorpus& self, const Array<int64_t>& rows, const BoundMasker& masker, uint64_t seed,
                      uint32_t epoch, int64_t tokens, int64_t sequences, int64_t predictions) {
  demand(rows.ndim() == 2 && rows.shape(1) == kColumns, "batch: rows must be [N, 7]");
  demand(tokens >= 0 && sequences >= 0 && predictions >= 0, "batch: a size is negative");
  Array<int64_t> ids(tokens), segments(tokens), positions(tokens), labels(tokens), masked(predictions);
  Array<int64_t> next_sentence(sequences);
  Array<int32_t> bounds(sequences + 1);
  const BatchArrays out{ids.mutable_data(),
                        segments.mutable_data(),
                        positions.mutable_data(),
                        labels.mutable_data(),
                        masked.mutable_data(),
                        bounds.mutable_data(),
                        next_sentence.mutable_data(),
                        tokens,
                        sequences,
                        predictions};
  {
    const py::gil_scoped_release unlocked;
    make_batch(self.corpus, rows.data(), rows.shape(0), masker.masker, masker.special, seed, epoch, out);
  }
  return py::make_tuple(ids, segments, positions, labels, masked, bounds, next_sentence);
}

// The bounds and ids are checked by the Python caller as well, whose messages these are; here they guard the memory.
py::tuple bound_mask(const BoundMasker& self, Array<int64_t> ids, const Array<int32_t>& bounds,
                     const Array<int64_t>& samples, uint64_t seed, uint32_t epoch) {
  const int64_t tokens = ids.size(), count = bounds.size() - 1;
  demand(samples.ndim() == 2 && samples.shape(1) == 2 && samples.shape(0) == count, "masking: samples must be [N, 2]");
  const int32_t* begin = bounds.data();
  demand(begin[0] == 0 && std::is_sorted(begin, begin + count + 1) && begin[count] <= tokens,
         "masking: cu_seqlens must rise from 0 to at most the number of ids");
  int64_t* data = ids.mutable_data();
  for (int64_t i = 0; i < tokens; ++i) {
    demand(data[i] >= 0 && data[i] < static_cast<int64_t>(self.masker.fixed.size()),
           "masking: id not in the vocabulary");
  }
  Array<int64_t> labels(tokens);
  std::vector<int64_t> positions(tokens);
  int64_t* label = labels.mutable_data();
  int64_t found = 0;
  {
    const py::gil_scoped_release unlocked;
    std::fill(label, label + tokens, int64_t{-100});
    MaskScratch scratch;
    for (int64_t i = 0; i < count; ++i) {
      const SampleKey key{seed, epoch, static_cast<uint32_t>(samples.data()[2 * i]),
                          static_cast<uint32_t>(samples.data()[2 * i + 1])};
      found += mask_sample(self.masker, key, data + begin[i], label + begin[i], begin[i + 1] - begin[i], begin[i],
                           positions.data() + found, tokens - found, scratch);
    }
  }
  return py::make_tuple(labels, Array<int64_t>(found, positions.data()));
}

}  // namespace

void bind_data(py::module_& m) {
  m.def("data_words", &words, "Words of one stream; see bertfast/data/random.py");
  m.def("data_best_fit", &bound_best_fit, "The batch of each sample; see bertfast/data/packing.py");
  py::class_<BoundMasker>(m, "DataMasker", "A masking rule; see bertfast/data/masking.py")
      .def(py::init(&make_masker))
      .def("mask", &bound_mask, py::arg("ids").noconvert(), py::arg("cu_seqlens"), py::arg("samples"), py::arg("seed"),
           py::arg("epoch"));
  py::class_<BoundCorpus>(m, "DataCorpus", "A corpus in memory that others own; see bertfast/data/corpus.py")
      .def(py::init<std::vector<py::array>, std::vector<py::array>, Array<int64_t>, Array<int64_t>>())
      .def("pairs", &bound_pairs)
      .def("batch", &bound_batch);
}

}  // namespace bertfast::data
