// The halves of linear_cross_entropy between its products, for masked_lm_loss/chunked.py, which owns the op on a CPU
// and calls them with pieces of it. They write into given tensors, so they are no ops of the library but live in a
// namespace of their own, without references, fakes or gradients.
#include "cross_entropy_kernels.h"
#include "host.h"
#include "huge_pages.h"

namespace bertfast {
namespace {

using at::Tensor;

bool is_vector(const Tensor& t, at::ScalarType dtype, int64_t size) {
  return t.scalar_type() == dtype && t.dim() == 1 && t.numel() == size && t.is_contiguous();
}

bool is_rows(const Tensor& t) { return t.dim() == 2 && (t.numel() == 0 || t.size(1) == 1 || t.stride(1) == 1); }

void check(const Tensor& logits, const Tensor& bias, const Tensor& labels) {
  TORCH_CHECK_VALUE(is_kernel_dtype(logits) && is_rows(logits) && logits.size(1) < (int64_t{1} << 31),
                    "cross_entropy: logits must be float32 or bfloat16 [rows, cols] with adjacent columns");
  TORCH_CHECK_VALUE(is_vector(bias, at::kFloat, logits.size(1)) && is_vector(labels, at::kLong, logits.size(0)),
                    "cross_entropy: bias must be float32 [cols] and labels int64 [rows], both contiguous");
}

void statistics(const Tensor& logits, const Tensor& bias, const Tensor& labels, const Tensor& loss, const Tensor& lse,
                const Tensor& argmax) {
  check(logits, bias, labels);
  const int64_t rows = logits.size(0);
  TORCH_CHECK_VALUE(
      is_vector(loss, at::kFloat, rows) && is_vector(lse, at::kFloat, rows) && is_vector(argmax, at::kLong, rows),
      "cross_entropy: loss and lse must be float32 [rows] and argmax int64 [rows], all contiguous");
  if (logits.numel() == 0) return;
  const CrossEntropyRows work{logits.scalar_type() == at::kBFloat16,
                              logits.size(1),
                              logits.stride(0),
                              logits.const_data_ptr(),
                              bias.const_data_ptr<float>(),
                              labels.const_data_ptr<int64_t>(),
                              loss.mutable_data_ptr<float>(),
                              lse.mutable_data_ptr<float>(),
                              argmax.mutable_data_ptr<int64_t>()};
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) { cross_entropy_kernels().forward(work, begin, end); });
}

void gradient(const Tensor& logits, const Tensor& bias, const Tensor& labels, const Tensor& lse, const Tensor& dloss,
              int64_t first, const Tensor& dlogits, const Tensor& dbias) {
  check(logits, bias, labels);
  const int64_t rows = logits.size(0), cols = logits.size(1);
  TORCH_CHECK_VALUE(is_vector(lse, at::kFloat, rows) && is_vector(dloss, at::kFloat, rows) &&
                        is_vector(dbias, at::kFloat, cols) && is_rows(dlogits) && dlogits.sizes() == logits.sizes() &&
                        dlogits.scalar_type() == logits.scalar_type(),
                    "cross_entropy: lse, dloss [rows] and dbias [cols] must be float32, dlogits as logits");
  const CrossEntropyColumns work{logits.scalar_type() == at::kBFloat16,
                                 rows,
                                 first,
                                 logits.stride(0),
                                 dlogits.stride(0),
                                 logits.const_data_ptr(),
                                 bias.const_data_ptr<float>(),
                                 labels.const_data_ptr<int64_t>(),
                                 lse.const_data_ptr<float>(),
                                 dloss.const_data_ptr<float>(),
                                 dlogits.mutable_data_ptr(),
                                 dbias.mutable_data_ptr<float>()};
  const int64_t blocks = (cols + kCrossEntropyColumns - 1) / kCrossEntropyColumns;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    cross_entropy_kernels().backward(work, begin * kCrossEntropyColumns, std::min(cols, end * kCrossEntropyColumns));
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bertfast_cpu, m) {
  m.def(
      "cross_entropy_statistics(Tensor logits, Tensor bias, Tensor labels, Tensor(a!) loss, Tensor(b!) lse, "
      "Tensor(c!) argmax) -> ()");
  m.def(
      "cross_entropy_gradient(Tensor logits, Tensor bias, Tensor labels, Tensor lse, Tensor dloss, int first, "
      "Tensor(a!) dlogits, Tensor(b!) dbias) -> ()");
  m.def("expect_whole_use(Tensor(a!) t) -> ()");
}

TORCH_LIBRARY_IMPL(bertfast_cpu, CPU, m) {
  m.impl("cross_entropy_statistics", &statistics);
  m.impl("cross_entropy_gradient", &gradient);
  m.impl("expect_whole_use", &expect_whole_use);
}

}  // namespace bertfast
