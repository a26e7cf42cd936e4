// Host side of packed_linear.h, and its ops for Python. A product is cut into units of one panel and some rows; threads
// take contiguous runs of them, panels innermost, so each works on rows that stay in its own cache.
#include "packed_linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/round.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "host.h"
#include "huge_pages.h"

namespace bertfast {
namespace {

// Rows of a unit: 96 x 768 floats are 288 KB, a quarter of the second-level cache. 48 and 192 measured 1 to 3 % slower.
constexpr int64_t kUnitRows = 96;

constexpr int64_t kQuantizeGrain = 8;     // rows a thread takes at least
constexpr int64_t kWidenGrain = 1 << 14;  // elements

PackedKind kind_of(at::ScalarType dtype, bool int8) {
  return int8 ? kPackedInt8 : dtype == at::kBFloat16 ? kPackedBFloat16 : kPackedFloat;
}

// Which kernels multiply packed weights of this kind here.
PackedKind kernel_of(PackedKind kind) { return kind == kPackedBFloat16 && !multiplies_pairs() ? kPackedWidened : kind; }

// How many inputs a 32-bit word holds.
int64_t per_word(PackedKind kind) { return kind == kPackedInt8 ? 4 : kind == kPackedBFloat16 ? 2 : 1; }

int64_t panels_of(int64_t outputs) {
  const int64_t panel = packed_linear_kernels().panel;
  return (outputs + panel - 1) / panel;
}

// Integers of [N, K] as bytes, one scale for each row. A row of zeros has scale 0.
std::tuple<at::Tensor, at::Tensor> quantize_weight(const at::Tensor& weight) {
  const at::Tensor w = weight.to(at::kFloat);
  const at::Tensor scale = at::amax(at::abs(w), {1}) / 127.0;
  const at::Tensor safe = at::where(scale > 0, scale, at::ones_like(scale));
  return {at::clamp(at::round(w / safe.unsqueeze(1)), -127, 127).to(at::kChar).contiguous(), scale};
}

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

bool widens_bfloat16() {
  return packed_linear_kernels().run[kPackedWidened] != nullptr && !multiplies_pairs() && !has_amx();
}

bool can_pack(at::ScalarType dtype, int64_t inputs, bool int8) {
  const PackedLinearKernels& kernels = packed_linear_kernels();
  if (kernels.panel == 0 || inputs == 0 || (dtype != at::kFloat && dtype != at::kBFloat16)) return false;
  const PackedKind kind = kind_of(dtype, int8);
  return kernels.run[kernel_of(kind)] != nullptr && inputs % per_word(kind) == 0 &&
         !(kind == kPackedBFloat16 && has_amx());
}

PackedWeight pack_weight(const at::Tensor& weight, at::ScalarType dtype, bool int8) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && is_kernel_dtype(weight) && weight.device().is_cpu(),
                    "packed_linear: the weight must be a float32 or bfloat16 matrix [N, K] on a CPU, got ",
                    weight.scalar_type(), " ", weight.sizes());
  TORCH_CHECK_VALUE(can_pack(dtype, weight.size(1), int8), "packed_linear: no kernel of this processor multiplies ",
                    int8 ? "int8" : c10::toString(dtype), " with ", weight.size(1), " inputs");
  const PackedLinearKernels& kernels = packed_linear_kernels();
  PackedWeight packed{{}, {}, {}, weight.size(1), weight.size(0), dtype, int8};
  at::Tensor plain;
  if (int8) {
    std::tie(plain, packed.scale) = quantize_weight(weight.detach());
    packed.sum = at::sum(plain, {1}, false, at::kInt).to(at::kFloat);
  } else {
    plain = weight.detach().to(dtype).contiguous();
  }
  const int64_t words = packed.inputs / per_word(kind_of(dtype, int8));
  packed.data = at::empty({panels_of(packed.outputs) * words * kernels.panel}, at::kFloat);
  expect_whole_use(packed.data);
  kernels.pack(static_cast<const float*>(plain.const_data_ptr()), packed.outputs, words,
               packed.data.mutable_data_ptr<float>());
  return packed;
}

void run_product(const PackedProduct& p, PackedKind kind, int64_t rows) {
  const PackedLinearKernels& kernels = packed_linear_kernels();
  const int64_t panels = panels_of(p.outputs), pieces = (rows + kUnitRows - 1) / kUnitRows;
  // In whole register blocks, evenly: a unit of a few rows sums in another order (kFew), and what a row comes to would
  // depend on how many rows stand beside it.
  const int64_t blocks = (rows + kernels.rows - 1) / kernels.rows;
  at::parallel_for(0, panels * pieces, 1, [&](int64_t begin, int64_t end) {
    const int64_t most = (blocks + pieces - 1) / pieces * kernels.rows;
    const at::Tensor scratch =
        at::empty({most * kernels.panel + (kind == kPackedWidened ? kernels.block : 0)}, at::kFloat);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t piece = unit / panels, row = blocks * piece / pieces * kernels.rows;
      const int64_t count = std::min(rows, blocks * (piece + 1) / pieces * kernels.rows) - row;
      kernels.run[kind](p, unit % panels, row, count, scratch.mutable_data_ptr<float>());
    }
  });
}

void packed_linear(const void* x, int64_t rows, const PackedWeight& w, const float* bias, Activation activation,
                   void* y) {
  const PackedLinearKernels& kernels = packed_linear_kernels();
  const PackedKind kind = kind_of(w.dtype, w.int8);
  PackedProduct p{};
  p.x = x;
  p.weights = w.data.const_data_ptr<float>();
  p.bias = bias;
  p.y = y;
  p.words = p.x_stride = w.inputs / per_word(kind);
  p.outputs = p.y_stride = w.outputs;
  p.activation = static_cast<int>(activation);
  p.y_bfloat16 = w.dtype == at::kBFloat16;
  at::Tensor bytes, scales, floats;
  if (kernel_of(kind) == kPackedWidened) {
    floats = at::empty({rows, w.inputs}, at::kFloat);
    float* to = floats.mutable_data_ptr<float>();
    at::parallel_for(0, rows * w.inputs, kWidenGrain, [&](int64_t begin, int64_t end) {
      kernels.widen(static_cast<const char*>(x) + begin * 2, end - begin, to + begin);
    });
    p.x = to;
    p.x_stride = w.inputs;
  }
  if (w.int8) {
    bytes = at::empty({rows, w.inputs}, at::kByte);
    scales = at::empty({2, rows}, at::kFloat);
    uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
    float *scale = scales.mutable_data_ptr<float>(), *low = scale + rows;
    const int64_t stride = w.inputs * (p.y_bfloat16 ? 2 : 4);
    at::parallel_for(0, rows, kQuantizeGrain, [&](int64_t begin, int64_t end) {
      kernels.quantize(static_cast<const char*>(x) + begin * stride, p.y_bfloat16, end - begin, w.inputs,
                       to + begin * w.inputs, scale + begin, low + begin);
    });
    p.x = to;
    p.x_scale = scale;
    p.x_low = low;
    p.w_scale = w.scale.const_data_ptr<float>();
    p.w_sum = w.sum.const_data_ptr<float>();
  }
  run_product(p, kernel_of(kind), rows);
}

namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> pack(const at::Tensor& weight, at::ScalarType dtype, bool int8) {
  const PackedWeight packed = pack_weight(weight, dtype, int8);
  const at::Tensor none = at::empty({0}, at::kFloat);
  return {packed.data, int8 ? packed.scale : none, int8 ? packed.sum : none};
}

at::Tensor linear(const at::Tensor& x_in, const at::Tensor& data, const at::Tensor& scale, const at::Tensor& sum,
                  int64_t outputs, const OptionalTensor& bias, int64_t activation) {
  const at::Tensor x = x_in.contiguous();
  const bool int8 = scale.numel() > 0;
  TORCH_CHECK_VALUE(x.dim() == 2 && is_kernel_dtype(x) && can_pack(x.scalar_type(), x.size(1), int8),
                    "packed_linear: x must be [T, K] in a dtype that this processor multiplies, got ", x.scalar_type(),
                    " ", x.sizes());
  auto is_floats = [](const at::Tensor& t, int64_t size) {
    return t.scalar_type() == at::kFloat && t.is_contiguous() && t.numel() == size;
  };
  const int64_t words = x.size(1) / per_word(kind_of(x.scalar_type(), int8));
  TORCH_CHECK_VALUE(outputs > 0 && is_floats(data, panels_of(outputs) * packed_linear_kernels().panel * words) &&
                        is_floats(scale, int8 ? outputs : 0) && is_floats(sum, int8 ? outputs : 0),
                    "packed_linear: the packed weight is not one of ", outputs, " outputs and ", x.size(1), " inputs");
  TORCH_CHECK_VALUE(activation >= 0 && activation <= 2, "packed_linear: activation must be 0, 1 or 2, got ",
                    activation);
  at::Tensor bias_f;
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->numel() == outputs, "packed_linear: bias must be [", outputs, "], got ",
                      bias->sizes());
    bias_f = as_float(*bias);
  }
  at::Tensor y = at::empty({x.size(0), outputs}, x.options());
  packed_linear(x.const_data_ptr(), x.size(0), {data, scale, sum, x.size(1), outputs, x.scalar_type(), int8},
                bias_f.defined() ? bias_f.const_data_ptr<float>() : nullptr, static_cast<Activation>(activation),
                y.mutable_data_ptr());
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bertfast_cpu, m) {
  m.def("widens_bfloat16() -> bool", &widens_bfloat16);
  m.def("can_pack(ScalarType dtype, int inputs, bool int8=False) -> bool", &can_pack);
  m.def("pack_weight(Tensor weight, ScalarType dtype, bool int8=False) -> (Tensor data, Tensor scale, Tensor sum)");
  m.def(
      "packed_linear(Tensor x, Tensor data, Tensor scale, Tensor sum, int outputs, Tensor? bias, int activation) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(bertfast_cpu, CPU, m) {
  m.impl("pack_weight", &pack);
  m.impl("packed_linear", &linear);
}

}  // namespace bertfast
