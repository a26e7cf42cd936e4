// Host pieces that the row ops (norms and GELU) share: storage of a tensor, dropout of rows, and the reduction of
// parameter gradients over chunks of rows. Chunks depend on the row count alone, so the result has the same bits for
// every number of threads.
#pragma once

#include "host.h"
#include "norm_kernels.h"

namespace bertfast {

inline Storage storage_of(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat ? Storage::kFloat : Storage::kBFloat16;
}

inline RowDropout row_dropout(double p, const std::optional<at::Tensor>& rng) {
  if (p == 0.0) return {0, 0, 0, 0, 1.0f};
  const DropoutState state = dropout_state(rng);
  const uint32_t threshold = threshold_rows(p);
  return {state.key0, state.key1, state.offset, threshold, static_cast<float>(65536.0 / (65536.0 - threshold))};
}

constexpr int64_t kRowGrain = 16;    // rows a thread takes at least: a row of 768 is about half a microsecond
constexpr int64_t kMostChunks = 64;  // partial sums kept at once: 64 * 3 * 768 floats are 0.6 MB

// Runs body(partial, begin, end) over chunks and returns the sum of their [vectors, cols], added in order of chunks.
template <class Body>
at::Tensor reduce_rows(int64_t vectors, int64_t rows, int64_t cols, Body&& body) {
  const int64_t chunk = std::max<int64_t>(kRowGrain, (rows + kMostChunks - 1) / kMostChunks);
  const int64_t chunks = (rows + chunk - 1) / chunk;
  at::Tensor partial = at::zeros({std::max<int64_t>(chunks, 1), vectors, cols}, at::kFloat);
  float* data = partial.mutable_data_ptr<float>();
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(data + i * vectors * cols, i * chunk, std::min(rows, (i + 1) * chunk));
  });
  for (int64_t i = 1; i < chunks; ++i) norm_kernels().add_row(data, data + i * vectors * cols, vectors * cols);
  return partial[0];
}

}  // namespace bertfast
