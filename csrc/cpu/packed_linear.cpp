// Host side of packed_linear.h, and its ops for Python. A product is cut into units of one panel and some rows; threads
// take contiguous runs of them, panels innermost, so each works on rows that stay in its own cache.
#include "packed_linear.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "host.h"
#include "huge_pages.h"

namespace bertfast {
namespace {

// Rows of a unit: 96 x 768 floats are 288 KB, a quarter of the second-level cache. 48 and 192 measured 1 to 3 % slower.
constexpr int64_t kUnitRows = 96;

int64_t words_of(at::ScalarType dtype, int64_t inputs) { return dtype == at::kFloat ? inputs : inputs / 2; }

bool has_amx() {
  static const bool found = [] {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      if (line.rfind("flags", 0) == 0) return line.find("amx_bf16") != std::string::npos;
    }
    return false;
  }();
  return found;
}

}  // namespace

bool can_pack(at::ScalarType dtype, int64_t inputs) {
  const PackedLinearKernels& kernels = packed_linear_kernels();
  if (kernels.panel == 0 || inputs == 0) return false;
  if (dtype == at::kFloat) return true;
  return dtype == at::kBFloat16 && inputs % 2 == 0 && kernels.run[1] != nullptr && !has_amx();
}

PackedWeight pack_weight(const at::Tensor& weight, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && is_kernel_dtype(weight) && weight.device().is_cpu(),
                    "packed_linear: the weight must be a float32 or bfloat16 matrix [N, K] on a CPU, got ",
                    weight.scalar_type(), " ", weight.sizes());
  TORCH_CHECK_VALUE(can_pack(dtype, weight.size(1)), "packed_linear: no kernel of this processor multiplies ", dtype,
                    " with ", weight.size(1), " inputs");
  const PackedLinearKernels& kernels = packed_linear_kernels();
  const at::Tensor plain = weight.detach().to(dtype).contiguous();
  const int64_t outputs = plain.size(0), words = words_of(dtype, plain.size(1));
  const int64_t panels = (outputs + kernels.panel - 1) / kernels.panel;
  at::Tensor data = at::empty({panels * words * kernels.panel}, at::kFloat);
  expect_whole_use(data);
  kernels.pack(static_cast<const float*>(plain.const_data_ptr()), outputs, words, data.mutable_data_ptr<float>());
  return {data, plain.size(1), outputs, dtype};
}

void packed_linear(const void* x, int64_t rows, const PackedWeight& w, const float* bias, Activation activation,
                   void* y) {
  const PackedLinearKernels& kernels = packed_linear_kernels();
  const bool bfloat16 = w.dtype == at::kBFloat16;
  PackedProduct p{};
  p.x = x;
  p.weights = w.data.const_data_ptr<float>();
  p.bias = bias;
  p.y = y;
  p.rows = rows;
  p.words = words_of(w.dtype, w.inputs);
  p.outputs = w.outputs;
  p.activation = static_cast<int>(activation);
  p.y_bfloat16 = bfloat16;
  const auto run = kernels.run[bfloat16 ? 1 : 0];
  const int64_t panels = (w.outputs + kernels.panel - 1) / kernels.panel;
  const int64_t pieces = (rows + kUnitRows - 1) / kUnitRows;
  // In whole register blocks, as far as there are several.
  const int64_t step =
      pieces == 1
          ? rows
          : std::min(kUnitRows, ((rows + pieces - 1) / pieces + kernels.rows - 1) / kernels.rows * kernels.rows);
  at::parallel_for(0, panels * pieces, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = at::empty({step * kernels.panel}, at::kFloat);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / panels * step;
      run(p, unit % panels, row, std::min(step, rows - row), scratch.mutable_data_ptr<float>());
    }
  });
}

namespace {

at::Tensor pack(const at::Tensor& weight, at::ScalarType dtype) { return pack_weight(weight, dtype).data; }

at::Tensor linear(const at::Tensor& x_in, const at::Tensor& data, int64_t outputs,
                  const std::optional<at::Tensor>& bias, int64_t activation) {
  const at::Tensor x = x_in.contiguous();
  const PackedLinearKernels& kernels = packed_linear_kernels();
  TORCH_CHECK_VALUE(x.dim() == 2 && is_kernel_dtype(x) && can_pack(x.scalar_type(), x.size(1)),
                    "packed_linear: x must be [T, K] in a dtype that this processor multiplies, got ", x.scalar_type(),
                    " ", x.sizes());
  TORCH_CHECK_VALUE(outputs > 0 && activation >= 0 && activation <= 2 && data.scalar_type() == at::kFloat &&
                        data.is_contiguous() &&
                        data.numel() == (outputs + kernels.panel - 1) / kernels.panel * kernels.panel *
                                            words_of(x.scalar_type(), x.size(1)),
                    "packed_linear: the packed weight is not one of ", outputs, " outputs and ", x.size(1), " inputs");
  at::Tensor bias_f;
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->numel() == outputs, "packed_linear: bias must be [", outputs, "], got ",
                      bias->sizes());
    bias_f = as_float(*bias);
  }
  at::Tensor y = at::empty({x.size(0), outputs}, x.options());
  packed_linear(x.const_data_ptr(), x.size(0), {data, x.size(1), outputs, x.scalar_type()},
                bias_f.defined() ? bias_f.const_data_ptr<float>() : nullptr, static_cast<Activation>(activation),
                y.mutable_data_ptr());
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bertfast_cpu, m) {
  m.def("can_pack(ScalarType dtype, int inputs) -> bool", &can_pack);
  m.def("pack_weight(Tensor weight, ScalarType dtype) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor packed, int outputs, Tensor? bias, int activation) -> Tensor");
}

TORCH_LIBRARY_IMPL(bertfast_cpu, CPU, m) {
  m.impl("pack_weight", &pack);
  m.impl("packed_linear", &linear);
}

}  // namespace bertfast
