// bias_gelu on a CPU: one pass each way over the output of the first feed-forward product.
#include "gelu_kernels.h"
#include "norm_host.h"

namespace bertfast {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

constexpr int64_t kGeluGrain = 4;  // rows a thread takes at least: 3072 GELUs are about a microsecond

void check(const at::Tensor& pre, const at::Tensor& bias) {
  TORCH_CHECK_VALUE(pre.dim() == 2 && bias.dim() == 1 && bias.numel() == pre.size(1) && pre.size(1) > 0,
                    "bias_gelu: pre must be [rows, cols] and bias [cols], got ", pre.sizes(), " and ", bias.sizes());
}

Gelu describe(const at::Tensor& pre, const at::Tensor& bias, bool tanh, at::Tensor& out) {
  return {pre.scalar_type() == at::kBFloat16, tanh,    pre.size(1),           pre.const_data_ptr(),
          bias.const_data_ptr<float>(),       nullptr, out.mutable_data_ptr()};
}

at::Tensor forward(const at::Tensor& pre_in, const at::Tensor& bias, bool tanh) {
  if (!is_kernel_dtype(pre_in)) {
    return call_reference<at::Tensor(const at::Tensor&, const at::Tensor&, bool)>("bertfast_reference::bias_gelu_fwd",
                                                                                  pre_in, bias, tanh);
  }
  check(pre_in, bias);
  const at::Tensor pre = pre_in.contiguous(), bias_f = as_float(bias);
  at::Tensor y = at::empty(pre.sizes(), pre.options());
  const Gelu work = describe(pre, bias_f, tanh, y);
  at::parallel_for(0, pre.size(0), kGeluGrain,
                   [&](int64_t begin, int64_t end) { gelu_kernels().forward(work, begin, end); });
  return y;
}

Pair backward(const at::Tensor& dy_in, const at::Tensor& pre_in, const at::Tensor& bias, bool tanh) {
  if (!is_kernel_dtype(pre_in)) {
    return call_reference<Pair(const at::Tensor&, const at::Tensor&, const at::Tensor&, bool)>(
        "bertfast_reference::bias_gelu_bwd", dy_in, pre_in, bias, tanh);
  }
  check(pre_in, bias);
  TORCH_CHECK_VALUE(dy_in.sizes() == pre_in.sizes(), "bias_gelu: dy must have pre's shape");
  const at::Tensor pre = pre_in.contiguous(), dy = dy_in.to(pre.scalar_type()).contiguous(), bias_f = as_float(bias);
  at::Tensor dpre = at::empty(pre.sizes(), pre.options());
  Gelu work = describe(pre, bias_f, tanh, dpre);
  work.dy = dy.const_data_ptr();
  const at::Tensor dbias = reduce_rows(1, pre.size(0), pre.size(1), [&](float* partial, int64_t begin, int64_t end) {
    gelu_kernels().backward(work, partial, begin, end);
  });
  return {dpre, dbias[0].to(bias.scalar_type()).clone()};
}

}  // namespace

TORCH_LIBRARY_IMPL(bertfast, CPU, m) {
  m.impl("bias_gelu_fwd", &forward);
  m.impl("bias_gelu_bwd", &backward);
}

}  // namespace bertfast
