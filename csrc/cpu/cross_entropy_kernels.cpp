// lse = max + log(sum(exp(v - max))) with v = logits + bias, and (exp(v - lse) - onehot) * dloss, in float. Forward
// looks at a row twice, for the maximum and for the sum: a row of 30522 is in the second cache after the first look,
// and one exponential an element is less than what an online softmax takes. Backward needs lse alone.
#include "cross_entropy_kernels.h"

#include "math.h"
#include "vec.h"

namespace bertfast {
namespace {

// Columns whose exponentials, and rows whose gradients, are added in one run before the run is added to the total: a
// single sum of 1228 rows had 5 times the error of torch's.
constexpr int64_t kColumnRun = 1024, kRowRun = 32;
constexpr float kInfinity = __builtin_inff();

// The last `count` logits with their bias; -inf in the lanes behind them.
template <class T>
BERTFAST_INLINE Vec biased_tail(const T* row, const float* bias, int count) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? to_float(row[i]) + bias[i] : -kInfinity;
  return load(lanes);
}

BERTFAST_INLINE VecI lane_numbers() {
  VecI lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// The largest logit of a row and, of equal ones, its first column.
template <class T>
BERTFAST_INLINE float largest(const T* row, const float* bias, int64_t cols, int64_t* column) {
  Vec top = splat(-kInfinity);
  VecI at = {};
  const auto look = [&](Vec v, int64_t c) {
    const VecI higher = v > top;
    top = higher ? v : top;
    at = higher ? VecI{} + static_cast<int32_t>(c) : at;
  };
  for_columns(
      cols, [&](int64_t c) { look(load(row + c) + load(bias + c), c); },
      [&](int64_t c, int n) { look(biased_tail(row + c, bias + c, n), c); });
  const float best = max_of(top);
  at += lane_numbers();
  *column = cols - 1;
  for (int i = 0; i < kLanes; ++i) {
    if (top[i] == best && at[i] < *column) *column = at[i];
  }
  return best;
}

template <class T>
BERTFAST_INLINE float sum_of_exp(const T* row, const float* bias, int64_t cols, float best) {
  Vec total = {};
  for (int64_t block = 0; block < cols; block += kColumnRun) {
    Vec part = {};
    const int64_t width = block + kColumnRun < cols ? kColumnRun : cols - block;
    const T* at = row + block;
    const float* b = bias + block;
    for_columns(
        width, [&](int64_t c) { part += vexp(load(at + c) + load(b + c) - best); },
        [&](int64_t c, int n) { part += vexp(biased_tail(at + c, b + c, n) - best); });
    total += part;
  }
  return sum(total);
}

template <class T>
void forward(const CrossEntropyRows& g, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(g.logits) + r * g.stride;
    const int64_t label = g.labels[r];
    if (label == kIgnoredLabel) {
      g.loss[r] = g.lse[r] = 0.0f;
      g.argmax[r] = -1;
      continue;
    }
    const float best = largest(row, g.bias, g.cols, &g.argmax[r]);
    const float log_total = __builtin_logf(sum_of_exp(row, g.bias, g.cols, best));
    const bool bad = label < 0 || label >= g.cols;
    const float at_label = bad ? __builtin_nanf("") : to_float(row[label]) + g.bias[label];
    // The difference first: it is small where the model is right, and best + log_total would round it away.
    g.loss[r] = (best - at_label) + log_total;
    g.lse[r] = bad ? at_label : best + log_total;
  }
}

template <class T>
BERTFAST_INLINE void gradient_row(const CrossEntropyColumns& g, int64_t r, int64_t begin, int64_t cols, float* dbias) {
  const T* row = static_cast<const T*>(g.logits) + r * g.stride + begin;
  T* out = static_cast<T*>(g.dlogits) + r * g.stride_out + begin;
  if (g.labels[r] == kIgnoredLabel) {  // not by a factor of 0: a NaN in such a row must not come out
    std::memset(static_cast<void*>(out), 0, cols * sizeof(T));
    return;
  }
  const float* bias = g.bias + begin;
  const int64_t label = g.labels[r] - g.first - begin;
  const float lse = g.lse[r], dloss = g.dloss[r];
  const auto gradient = [&](Vec v, int64_t c) {
    Vec p = vexp(v - lse);
    if (label >= c && label < c + kLanes) p[label - c] -= 1.0f;
    return p * dloss;
  };
  for_columns(
      cols,
      [&](int64_t c) {
        const Vec d = gradient(load(row + c) + load(bias + c), c);
        store(out + c, d);
        store(dbias + c, load(dbias + c) + d);
      },
      [&](int64_t c, int n) {
        const Vec d = gradient(biased_tail(row + c, bias + c, n), c);
        store_tail(out + c, d, n);
        for (int i = 0; i < n; ++i) dbias[c + i] += d[i];
      });
}

template <class T>
void backward_block(const CrossEntropyColumns& g, int64_t begin, int64_t cols) {
  float* dbias = g.dbias + begin;
  std::memset(dbias, 0, cols * sizeof(float));
  for (int64_t run = 0; run < g.rows; run += kRowRun) {
    float part[kCrossEntropyColumns] = {};
    const int64_t end = run + kRowRun < g.rows ? run + kRowRun : g.rows;
    for (int64_t r = run; r < end; ++r) gradient_row<T>(g, r, begin, cols, part);
    for (int64_t c = 0; c < cols; ++c) dbias[c] += part[c];
  }
}

template <class T>
void backward(const CrossEntropyColumns& g, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kCrossEntropyColumns) {
    backward_block<T>(g, c, end - c < kCrossEntropyColumns ? end - c : kCrossEntropyColumns);
  }
}

void forward_any(const CrossEntropyRows& g, int64_t begin, int64_t end) {
  return g.bfloat16 ? forward<BFloat16>(g, begin, end) : forward<float>(g, begin, end);
}

void backward_any(const CrossEntropyColumns& g, int64_t begin, int64_t end) {
  return g.bfloat16 ? backward<BFloat16>(g, begin, end) : backward<float>(g, begin, end);
}

}  // namespace

const CrossEntropyKernels BERTFAST_TABLE(cross_entropy) = {forward_any, backward_any};

}  // namespace bertfast
