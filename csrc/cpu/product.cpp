// Products of training, C = A B with sides in any layout, by the kernels of packed_linear.h: both sides are written
// into their order first, which costs 8 % of a product of 1024 rows and makes weight gradients, whose
// sides both lie across, as fast as any other.
#include <algorithm>
#include <mutex>
#include <vector>

#include "host.h"
#include "huge_pages.h"
#include "packed_linear.h"
#include "product_kernels.h"

namespace bertfast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t kSideWords = int64_t{4} << 20;  // of a side that are written at once, 16 MB, where one panel is less
constexpr int64_t kGap = 16;  // words between turned rows, so that their addresses do not all meet in one cache set

// Memory for the reordered sides, kept between calls: zeroed pages for each would take a tenth of the product. A second
// thread that multiplies meanwhile gets memory of its own.
class Workspace {
 public:
  Workspace() : lock_(mutex(), std::try_to_lock) {}

  float* get(int64_t words) {
    at::Tensor& held = lock_.owns_lock() ? shared() : own_;
    if (!held.defined() || held.numel() < words) {
      held = at::Tensor();
      held = at::empty({words}, at::kFloat);
      expect_whole_use(held);
    }
    return held.mutable_data_ptr<float>();
  }

 private:
  // Never destroyed: a thread may still multiply while the process ends.
  static std::mutex& mutex() {
    static auto* one = new std::mutex;
    return *one;
  }
  static at::Tensor& shared() {
    static auto* one = new at::Tensor;
    return *one;
  }

  std::unique_lock<std::mutex> lock_;
  at::Tensor own_;
};

bool is_lines(const at::Tensor& t) { return t.stride(1) == 1 || t.size(1) == 1; }
bool is_across(const at::Tensor& t) { return t.stride(0) == 1 || t.size(0) == 1; }

// t [lines, inner], in rows or in columns.
ProductSide describe(const at::Tensor& t, bool pairs) {
  const bool across = !is_lines(t);
  return {t.const_data_ptr(),
          t.scalar_type() == at::kFloat ? kFloatStorage : kBFloat16Storage,
          across,
          across ? t.stride(1) : t.stride(0),
          t.size(0),
          t.size(1),
          pairs};
}

// Whether the kernels read t [lines, inner] as it lies.
bool fits(const at::Tensor& t, bool pairs) {
  if (is_lines(t)) return !pairs || (t.size(1) % 2 == 0 && t.stride(0) % 2 == 0);
  return is_across(t);
}

// The right side, of one or several matrices b_i: joined along the inner dimension where `along` is 0, along the
// columns of the result where it is 1. As lines of the kernels it is transposed.
struct RightSide {
  std::vector<ProductSide> parts;
  int64_t along, lines = 0, inner = 0;

  RightSide(at::TensorList b, int64_t along, bool pairs) : along(along) {
    for (const at::Tensor& part : b) parts.push_back(describe(part.t(), pairs));
    for (const ProductSide& part : parts) {
      lines = along == 1 ? lines + part.lines : part.lines;
      inner = along == 0 ? inner + part.inner : part.inner;
    }
  }

  void pack(const ProductKernels& kernels, int64_t first, float* to) const {
    for (const ProductSide& part : parts) {
      if (along == 0) {
        kernels.pack_panel(part, first, to);
        to += (part.pairs ? (part.inner + 1) / 2 : part.inner) * kernels.panel;
      } else if (first < part.lines) {
        kernels.pack_panel(part, first, to);
        return;
      } else {
        first -= part.lines;
      }
    }
  }
};

// Whether b_i lie so that panels and words end where the matrices do.
bool can_join(const at::Tensor& a, at::TensorList b, int64_t along) {
  const bool pairs = a.scalar_type() == at::kBFloat16;
  const int64_t other = 1 - along, whole = along == 0 ? (pairs ? 2 : 1) : product_kernels().panel;
  int64_t total = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const at::Tensor& part = b[i];
    if (part.dim() != 2 || part.numel() == 0 || part.size(other) != b[0].size(other) || !part.device().is_cpu() ||
        (part.scalar_type() != at::kFloat && part.scalar_type() != a.scalar_type()) || !fits(part.t(), pairs) ||
        (i + 1 < b.size() && part.size(along) % whole != 0)) {
      return false;
    }
    total += part.size(along);
  }
  return !b.empty() && (along == 0 ? total : b[0].size(0)) == a.size(1);
}

bool can_multiply(const at::Tensor& a, at::TensorList b, int64_t along) {
  return product_kernels().panel != 0 && is_kernel_dtype(a) && can_pack(a.scalar_type(), 2) &&
         (a.scalar_type() == at::kFloat || multiplies_pairs()) && a.dim() == 2 && a.numel() > 0 &&
         fits(a, a.scalar_type() == at::kBFloat16) && (along == 0 || along == 1) && can_join(a, b, along);
}

void product(const at::Tensor& a, at::TensorList b, int64_t along, const OptionalTensor& bias, const at::Tensor& c) {
  TORCH_CHECK_VALUE(can_multiply(a, b, along), "product: no kernel of this processor multiplies ", a.scalar_type(), " ",
                    a.sizes(), " with ", b.size(), " matrices such as these");
  const bool pairs = a.scalar_type() == at::kBFloat16;
  const ProductSide left = describe(a, pairs);
  const RightSide right(b, along, pairs);
  TORCH_CHECK_VALUE(c.dim() == 2 && c.size(0) == left.lines && c.size(1) == right.lines && is_kernel_dtype(c) &&
                        c.device().is_cpu() && is_lines(c),
                    "product: the result must be a float32 or bfloat16 matrix of ", left.lines, " rows of ",
                    right.lines, " neighbours, got ", c.scalar_type(), " ", c.sizes());
  at::Tensor bias_f;
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->numel() == right.lines, "product: bias must be [", right.lines,
                      "], got ", bias->sizes());
    bias_f = as_float(*bias);
  }
  const ProductKernels& kernels = product_kernels();
  const int64_t panel = kernels.panel, words = pairs ? (left.inner + 1) / 2 : left.inner, stride = words + kGap;
  // How many lines of each side are written at once.
  auto at_once = [&](int64_t lines) {
    return panel * std::min((lines + panel - 1) / panel, std::max(int64_t{1}, kSideWords / (words * panel)));
  };
  const int64_t columns = at_once(right.lines), rows = left.across ? at_once(left.lines) : left.lines;
  Workspace workspace;
  float* packed = workspace.get(columns * words + (left.across ? rows * stride : 0));
  float* turned = packed + columns * words;

  PackedProduct p{};
  p.words = words;
  p.x_stride = left.across ? stride : left.stride / (pairs ? 2 : 1);
  p.y_stride = c.stride(0);
  p.y_bfloat16 = c.scalar_type() == at::kBFloat16;
  p.weights = packed;
  const int64_t size = p.y_bfloat16 ? 2 : 4;
  for (int64_t row = 0; row < left.lines; row += rows) {
    const int64_t height = std::min(rows, left.lines - row);
    p.x = left.from;
    if (left.across) {
      at::parallel_for(0, (height + panel - 1) / panel, 1, [&](int64_t begin, int64_t end) {
        const at::Tensor scratch = at::empty({words * panel}, at::kFloat);
        for (int64_t i = begin; i < end; ++i) {
          kernels.turn_lines(left, row + i * panel, scratch.mutable_data_ptr<float>(), turned + i * panel * stride,
                             stride);
        }
      });
      p.x = turned;
    }
    for (int64_t column = 0; column < right.lines; column += columns) {
      p.outputs = std::min(columns, right.lines - column);
      if (row == 0 || columns < right.lines) {
        at::parallel_for(0, (p.outputs + panel - 1) / panel, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) right.pack(kernels, column + i * panel, packed + i * panel * words);
        });
      }
      p.bias = bias_f.defined() ? bias_f.const_data_ptr<float>() + column : nullptr;
      p.y = static_cast<char*>(c.mutable_data_ptr()) + (row * p.y_stride + column) * size;
      run_product(p, pairs ? kPackedBFloat16 : kPackedFloat, height);
    }
  }
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bertfast_cpu, m) {
  m.def("can_multiply(Tensor a, Tensor[] b, int along) -> bool");
  m.def("product(Tensor a, Tensor[] b, int along, Tensor? bias, Tensor(a!) c) -> ()");
}

TORCH_LIBRARY_IMPL(bertfast_cpu, CPU, m) {
  m.impl("can_multiply", &can_multiply);
  m.impl("product", &product);
}

}  // namespace bertfast
