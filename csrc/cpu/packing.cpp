// Packing on a CPU: rows copied as bytes, so every dtype is taken. Indices are checked before any read or write.
#include <cstring>

#include "host.h"

namespace bertfast {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

constexpr int64_t kBytesGrain = 1 << 16;  // a thread copies at least this much

Pair pack_mask(const at::Tensor& mask_in) {
  TORCH_CHECK_VALUE(mask_in.dim() == 2 && mask_in.scalar_type() == at::kBool,
                    "pack_mask: mask must be bool [B, S], got ", mask_in.scalar_type(), " ", mask_in.sizes());
  const at::Tensor mask = mask_in.contiguous();
  const int64_t batch = mask.size(0), length = mask.size(1);
  const bool* real = mask.const_data_ptr<bool>();
  at::Tensor cu_seqlens = at::empty({batch + 1}, mask.options().dtype(at::kInt));
  int32_t* bounds = cu_seqlens.mutable_data_ptr<int32_t>();
  int64_t tokens = 0;
  bounds[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t s = 0; s < length; ++s) tokens += real[b * length + s];
    TORCH_CHECK_VALUE(tokens <= INT32_MAX, "pack_mask: more than 2^31 - 1 real tokens; split the batch");
    bounds[b + 1] = static_cast<int32_t>(tokens);
  }
  at::Tensor indices = at::empty({tokens}, mask.options().dtype(at::kLong));
  int64_t* to = indices.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch * length; ++i) {
    if (real[i]) *to++ = i;
  }
  return {indices, cu_seqlens};
}

const int64_t* checked(const at::Tensor& indices, int64_t rows) {
  TORCH_CHECK_VALUE(indices.dim() == 1 && indices.scalar_type() == at::kLong && indices.is_contiguous(),
                    "packing: indices must be contiguous int64 [T], got ", indices.scalar_type(), " ", indices.sizes());
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < rows, "packing: index ", index[i], " at position ", i,
                      " is outside the ", rows, " rows of the padded batch");
  }
  return index;
}

template <class Copy>
void for_rows(int64_t rows, int64_t bytes, Copy&& copy) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kBytesGrain / std::max<int64_t>(1, bytes)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) copy(i);
                   });
}

at::Tensor unpad(const at::Tensor& x_in, const at::Tensor& indices) {
  TORCH_CHECK_VALUE(x_in.dim() == 2, "unpad: x must be [rows, cols], got ", x_in.sizes());
  const at::Tensor x = x_in.contiguous();
  const int64_t* index = checked(indices, x.size(0));
  const int64_t bytes = x.size(1) * x.element_size();
  at::Tensor y = at::empty({indices.numel(), x.size(1)}, x.options());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(y.mutable_data_ptr());
  for_rows(indices.numel(), bytes, [&](int64_t i) { std::memcpy(to + i * bytes, from + index[i] * bytes, bytes); });
  return y;
}

at::Tensor repad(const at::Tensor& x_in, const at::Tensor& indices, int64_t rows) {
  TORCH_CHECK_VALUE(x_in.dim() == 2 && x_in.size(0) == indices.numel(), "repad: x must be [", indices.numel(),
                    ", cols], got ", x_in.sizes());
  const at::Tensor x = x_in.contiguous();
  const int64_t* index = checked(indices, rows);
  const int64_t bytes = x.size(1) * x.element_size();
  at::Tensor y = at::zeros({rows, x.size(1)}, x.options());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(y.mutable_data_ptr());
  for_rows(indices.numel(), bytes, [&](int64_t i) { std::memcpy(to + index[i] * bytes, from + i * bytes, bytes); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(bertfast, CPU, m) {
  m.impl("pack_mask", &pack_mask);
  m.impl("unpad", &unpad);
  m.impl("repad", &repad);
}

}  // namespace bertfast
