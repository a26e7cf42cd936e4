// dropout_add_norm on a CPU: y = norm(dropout(x + bias) + residual). Rows are split over threads; backward rebuilds the
// sum from x and residual and reduces dweight, dnorm_bias and dbias over fixed chunks of rows.
#include "norm_host.h"

namespace bertfast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::ScalarType result_dtype(const at::Tensor& x, const OptionalTensor& residual) {
  return residual ? c10::promoteTypes(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
}

// The kernels take float or bfloat16 x with a residual of the same dtype, or bfloat16 x with a float residual.
bool takes(const at::Tensor& x, const OptionalTensor& residual) {
  return is_kernel_dtype(x) &&
         (!residual || (is_kernel_dtype(*residual) && result_dtype(x, residual) == residual->scalar_type()));
}

void check(const at::Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0, "dropout_add_norm: x must be [rows, cols] with cols > 0, got ",
                    x.sizes());
  TORCH_CHECK_VALUE(!residual || residual->sizes() == x.sizes(), "dropout_add_norm: residual must have x's shape");
  TORCH_CHECK_VALUE(weight.numel() == x.size(1) && (!bias || bias->numel() == x.size(1)),
                    "dropout_add_norm: weight and bias must have ", x.size(1), " elements");
}

Triple forward(const at::Tensor& x_in, const OptionalTensor& bias, const OptionalTensor& residual_in,
               const at::Tensor& weight, const at::Tensor& norm_bias, double eps, double dropout_p,
               const OptionalTensor& rng) {
  if (!takes(x_in, residual_in)) {
    return call_reference<Triple(const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                                 const at::Tensor&, double, double, const OptionalTensor&)>(
        "bertfast_reference::dropout_add_norm_fwd", x_in, bias, residual_in, weight, norm_bias, eps, dropout_p, rng);
  }
  check(x_in, bias, residual_in, weight);
  TORCH_CHECK_VALUE(norm_bias.numel() == x_in.size(1), "dropout_add_norm: norm_bias must have ", x_in.size(1),
                    " elements");
  const at::Tensor x = x_in.contiguous();
  const OptionalTensor residual = residual_in ? OptionalTensor(residual_in->contiguous()) : residual_in;
  const at::Tensor bias_f = bias ? as_float(*bias) : at::Tensor(), weight_f = as_float(weight),
                   norm_bias_f = as_float(norm_bias);
  at::Tensor y = at::empty(x.sizes(), x.options().dtype(result_dtype(x, residual)));
  at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(at::kFloat)), rstd = at::empty_like(mean);
  const AddNorm work{x.size(1),
                     x.const_data_ptr(),
                     bias ? bias_f.const_data_ptr<float>() : nullptr,
                     residual ? residual->const_data_ptr() : nullptr,
                     weight_f.const_data_ptr<float>(),
                     norm_bias_f.const_data_ptr<float>(),
                     static_cast<float>(eps),
                     row_dropout(dropout_p, rng),
                     y.mutable_data_ptr(),
                     mean.mutable_data_ptr<float>(),
                     rstd.mutable_data_ptr<float>()};
  at::parallel_for(0, x.size(0), kRowGrain, [&](int64_t begin, int64_t end) {
    norm_kernels().add_norm(storage_of(x), storage_of(y), work, begin, end);
  });
  return {y, mean, rstd};
}

Gradients backward(const at::Tensor& dy_in, const at::Tensor& x_in, const OptionalTensor& bias,
                   const OptionalTensor& residual_in, const at::Tensor& weight, const at::Tensor& mean,
                   const at::Tensor& rstd, double dropout_p, const OptionalTensor& rng) {
  if (!takes(x_in, residual_in)) {
    return call_reference<Gradients(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    const at::Tensor&, const at::Tensor&, const at::Tensor&, double,
                                    const OptionalTensor&)>("bertfast_reference::dropout_add_norm_bwd", dy_in, x_in,
                                                            bias, residual_in, weight, mean, rstd, dropout_p, rng);
  }
  check(x_in, bias, residual_in, weight);
  TORCH_CHECK_VALUE(dy_in.sizes() == x_in.sizes() && mean.numel() == x_in.size(0) && rstd.numel() == x_in.size(0),
                    "dropout_add_norm: dy, mean and rstd must come from the forward call on x");
  const at::Tensor x = x_in.contiguous(), dy = dy_in.to(result_dtype(x_in, residual_in)).contiguous(),
                   mean_c = mean.contiguous(), rstd_c = rstd.contiguous();
  const OptionalTensor residual = residual_in ? OptionalTensor(residual_in->contiguous()) : residual_in;
  const at::Tensor bias_f = bias ? as_float(*bias) : at::Tensor(), weight_f = as_float(weight);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  at::Tensor dresidual = residual ? at::empty(x.sizes(), residual->options()) : at::empty({0}, x.options());
  const AddNormGradient work{x.size(1),
                             dy.const_data_ptr(),
                             x.const_data_ptr(),
                             bias ? bias_f.const_data_ptr<float>() : nullptr,
                             residual ? residual->const_data_ptr() : nullptr,
                             weight_f.const_data_ptr<float>(),
                             mean_c.const_data_ptr<float>(),
                             rstd_c.const_data_ptr<float>(),
                             row_dropout(dropout_p, rng),
                             dx.mutable_data_ptr(),
                             residual ? dresidual.mutable_data_ptr() : nullptr};
  const at::Tensor sums = reduce_rows(3, x.size(0), x.size(1), [&](float* partial, int64_t begin, int64_t end) {
    norm_kernels().add_norm_gradient(storage_of(x), storage_of(dy), work, partial, begin, end);
  });
  const at::Tensor dbias = bias ? sums[2].to(bias->scalar_type()).clone() : at::empty({0}, x.options());
  return {dx, dresidual, dbias, sums[0].to(weight.scalar_type()).clone(), sums[1].to(weight.scalar_type()).clone()};
}

}  // namespace

TORCH_LIBRARY_IMPL(bertfast, CPU, m) {
  m.impl("dropout_add_norm_fwd", &forward);
  m.impl("dropout_add_norm_bwd", &backward);
}

}  // namespace bertfast
