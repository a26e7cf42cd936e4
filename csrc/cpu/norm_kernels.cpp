// Norm rows on one processor core. A row is gathered or summed into a float buffer (L1), its mean and then its centred
// variance are taken in two sweeps of that buffer, as eager does, and it is written once. Backward rebuilds the row
// from the inputs and the saved mean and rstd; parameter gradients go to the caller's partial sums in row order.
#include "norm_kernels.h"

#include <cmath>
#include <vector>

#include "philox.h"
#include "vec.h"

namespace bertfast {
namespace {

struct Buffers {
  std::vector<float> z, scale, g;
  explicit Buffers(int64_t cols) : z(cols + kLanes), scale(cols + kLanes * 8), g(cols + kLanes) {}
};

const float* row_scale(const RowDropout& d, int64_t row, int64_t cols, Buffers& buffers) {
  if (d.threshold == 0) return nullptr;
  dropout_row({d.key0, d.key1, d.offset}, row, cols, d.threshold, d.inverse_keep, buffers.scale.data());
  return buffers.scale.data();
}

// z = (x + bias) * scale + residual
template <class X, class Y>
void sum_row(const X* x, const float* bias, const float* scale, const Y* residual, int64_t cols, float* z) {
  auto part = [&](Vec v, Vec b, Vec s, Vec r) { return (v + b) * s + r; };
  const Vec one = splat(1.0f), zero = Vec{};
  for_columns(
      cols,
      [&](int64_t c) {
        store(z + c, part(load(x + c), bias ? load(bias + c) : zero, scale ? load(scale + c) : one,
                          residual ? load(residual + c) : zero));
      },
      [&](int64_t c, int n) {
        store(z + c, part(load_tail(x + c, n), bias ? load_tail(bias + c, n) : zero, scale ? load(scale + c) : one,
                          residual ? load_tail(residual + c, n) : zero));
      });
}

// y = norm(z) * weight + norm_bias, times scale where the dropout comes after the norm.
template <class Y>
void norm_row(const float* z, int64_t cols, const float* weight, const float* norm_bias, float eps, const float* after,
              Y* y, float* mean_out, float* rstd_out) {
  Vec total = Vec{};
  for_columns(cols, [&](int64_t c) { total += load(z + c); }, [&](int64_t c, int n) { total += load_tail(z + c, n); });
  const float mean = sum(total) / static_cast<float>(cols);
  Vec squares = Vec{};
  for_columns(
      cols,
      [&](int64_t c) {
        const Vec d = load(z + c) - mean;
        squares += d * d;
      },
      [&](int64_t c, int n) {
        for (int i = 0; i < n; ++i) squares[i] += (z[c + i] - mean) * (z[c + i] - mean);
      });
  const float rstd = 1.0f / std::sqrt(sum(squares) / static_cast<float>(cols) + eps);
  const Vec one = splat(1.0f);
  for_columns(
      cols,
      [&](int64_t c) {
        const Vec v = (load(z + c) - mean) * rstd * load(weight + c) + load(norm_bias + c);
        store(y + c, after ? v * load(after + c) : v);
      },
      [&](int64_t c, int n) {
        const Vec v = (load_tail(z + c, n) - mean) * rstd * load_tail(weight + c, n) + load_tail(norm_bias + c, n);
        store_tail(y + c, v * (after ? load_tail(after + c, n) : one), n);
      });
  *mean_out = mean;
  *rstd_out = rstd;
}

// dz into g, dweight and dnorm_bias into partial. `after` multiplies dy where the dropout came after the norm.
template <class Y>
void norm_row_gradient(const float* z, const Y* dy, const float* after, int64_t cols, const float* weight, float mean,
                       float rstd, float* partial, float* g) {
  Vec sum_g = Vec{}, sum_gx = Vec{};
  float* dweight = partial;
  float* dnorm_bias = partial + cols;
  for_columns(
      cols,
      [&](int64_t c) {
        const Vec xhat = (load(z + c) - mean) * rstd;
        const Vec d = after ? load(dy + c) * load(after + c) : load(dy + c);
        store(dweight + c, load(dweight + c) + d * xhat);
        store(dnorm_bias + c, load(dnorm_bias + c) + d);
        const Vec v = d * load(weight + c);
        store(g + c, v);
        sum_g += v;
        sum_gx += v * xhat;
      },
      [&](int64_t c, int n) {
        for (int i = 0; i < n; ++i) {
          const float xhat = (z[c + i] - mean) * rstd;
          const float d = to_float(dy[c + i]) * (after ? after[c + i] : 1.0f);
          dweight[c + i] += d * xhat;
          dnorm_bias[c + i] += d;
          g[c + i] = d * weight[c + i];
          sum_g[i] += g[c + i];
          sum_gx[i] += g[c + i] * xhat;
        }
      });
  const float mean_g = sum(sum_g) / static_cast<float>(cols), mean_gx = sum(sum_gx) / static_cast<float>(cols);
  for (int64_t c = 0; c < cols; ++c) {
    g[c] = rstd * (g[c] - mean_g - (z[c] - mean) * rstd * mean_gx);
  }
}

template <class X, class Y>
void add_norm(const AddNorm& a, int64_t begin, int64_t end) {
  Buffers buffers(a.cols);
  for (int64_t row = begin; row < end; ++row) {
    const Y* residual = a.residual ? static_cast<const Y*>(a.residual) + row * a.cols : nullptr;
    const float* scale = row_scale(a.dropout, row, a.cols, buffers);
    sum_row(static_cast<const X*>(a.x) + row * a.cols, a.bias, scale, residual, a.cols, buffers.z.data());
    norm_row(buffers.z.data(), a.cols, a.weight, a.norm_bias, a.eps, nullptr, static_cast<Y*>(a.y) + row * a.cols,
             a.mean + row, a.rstd + row);
  }
}

template <class X, class Y>
void add_norm_gradient(const AddNormGradient& a, float* partial, int64_t begin, int64_t end) {
  Buffers buffers(a.cols);
  float* dbias = partial + 2 * a.cols;
  float* g = buffers.g.data();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.cols;
    const Y* residual = a.residual ? static_cast<const Y*>(a.residual) + at : nullptr;
    const float* scale = row_scale(a.dropout, row, a.cols, buffers);
    sum_row(static_cast<const X*>(a.x) + at, a.bias, scale, residual, a.cols, buffers.z.data());
    norm_row_gradient(buffers.z.data(), static_cast<const Y*>(a.dy) + at, nullptr, a.cols, a.weight, a.mean[row],
                      a.rstd[row], partial, g);
    X* dx = static_cast<X*>(a.dx) + at;
    Y* dresidual = a.dresidual ? static_cast<Y*>(a.dresidual) + at : nullptr;
    auto write = [&](int64_t c, int n) {
      const Vec dz = load(g + c);
      const Vec d = scale ? dz * load(scale + c) : dz;
      if (n == kLanes) {
        if (dresidual) store(dresidual + c, dz);
        store(dx + c, d);
        store(dbias + c, load(dbias + c) + d);
      } else {
        if (dresidual) store_tail(dresidual + c, dz, n);
        store_tail(dx + c, d, n);
        for (int i = 0; i < n; ++i) dbias[c + i] += d[i];
      }
    };
    for_columns(a.cols, [&](int64_t c) { write(c, kLanes); }, write);
  }
}

template <class T>
void gather_row(const EmbeddingNorm& a, int64_t row, float* z) {
  const T* word = static_cast<const T*>(a.word) + a.word_ids[row] * a.cols;
  const T* position = static_cast<const T*>(a.position) + a.position_ids[row] * a.cols;
  const T* segment = static_cast<const T*>(a.segment) + a.segment_ids[row] * a.cols;
  for_columns(
      a.cols, [&](int64_t c) { store(z + c, load(word + c) + load(segment + c) + load(position + c)); },
      [&](int64_t c, int n) {
        store(z + c, load_tail(word + c, n) + load_tail(segment + c, n) + load_tail(position + c, n));
      });
}

template <class T>
void embedding_norm(const EmbeddingNorm& a, int64_t begin, int64_t end) {
  Buffers buffers(a.cols);
  for (int64_t row = begin; row < end; ++row) {
    gather_row<T>(a, row, buffers.z.data());
    norm_row(buffers.z.data(), a.cols, a.weight, a.norm_bias, a.eps, row_scale(a.dropout, row, a.cols, buffers),
             static_cast<T*>(a.y) + row * a.cols, a.mean + row, a.rstd + row);
  }
}

template <class T>
void embedding_norm_gradient(const EmbeddingNormGradient& a, float* partial, int64_t begin, int64_t end) {
  const EmbeddingNorm& f = a.forward;
  Buffers buffers(f.cols);
  for (int64_t row = begin; row < end; ++row) {
    gather_row<T>(f, row, buffers.z.data());
    norm_row_gradient(buffers.z.data(), static_cast<const T*>(a.dy) + row * f.cols,
                      row_scale(f.dropout, row, f.cols, buffers), f.cols, f.weight, f.mean[row], f.rstd[row], partial,
                      buffers.g.data());
    std::memcpy(a.dz + row * f.cols, buffers.g.data(), f.cols * sizeof(float));
  }
}

void add_norm_any(Storage x, Storage y, const AddNorm& a, int64_t begin, int64_t end) {
  if (x == Storage::kFloat) return add_norm<float, float>(a, begin, end);
  if (y == Storage::kFloat) return add_norm<BFloat16, float>(a, begin, end);
  return add_norm<BFloat16, BFloat16>(a, begin, end);
}

void add_norm_gradient_any(Storage x, Storage y, const AddNormGradient& a, float* partial, int64_t begin, int64_t end) {
  if (x == Storage::kFloat) return add_norm_gradient<float, float>(a, partial, begin, end);
  if (y == Storage::kFloat) return add_norm_gradient<BFloat16, float>(a, partial, begin, end);
  return add_norm_gradient<BFloat16, BFloat16>(a, partial, begin, end);
}

void embedding_norm_any(Storage table, const EmbeddingNorm& a, int64_t begin, int64_t end) {
  if (table == Storage::kFloat) return embedding_norm<float>(a, begin, end);
  return embedding_norm<BFloat16>(a, begin, end);
}

void embedding_norm_gradient_any(Storage table, const EmbeddingNormGradient& a, float* partial, int64_t begin,
                                 int64_t end) {
  if (table == Storage::kFloat) return embedding_norm_gradient<float>(a, partial, begin, end);
  return embedding_norm_gradient<BFloat16>(a, partial, begin, end);
}

void add_row(float* destination, const float* source, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) destination[c] += source[c];
}

}  // namespace

const NormKernels BERTFAST_TABLE(norm) = {add_norm_any, add_norm_gradient_any, embedding_norm_any,
                                          embedding_norm_gradient_any, add_row};

}  // namespace bertfast
