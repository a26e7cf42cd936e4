// linear_gelu_infer: bias and GELU in the epilogue. Inference keeps its weights transposed, so this one lies [depth,
// columns].
#include "gelu_epilogue.cuh"

namespace bertfast {

using Tree = fusion::Sm90EVT<Compute<Gelu, bf16>,
                             fusion::Sm90EVT<Compute<cutlass::plus, float>, fusion::Sm90AccFetch, Bias<PingPong>>>;
using LinearGeluInfer = Product<PingPong, RowMajor, RowMajor, void, Tree>;

}  // namespace bertfast

const char* bertfast_linear_gelu_infer(const bertfast::Launch* launch, const void* x, const void* weight,
                                       const void* bias, void* y, int64_t tokens, int64_t columns, int64_t depth) {
  using namespace bertfast;
  typename LinearGeluInfer::EpilogueArguments epilogue{{{}, {static_cast<const bf16*>(bias)}, {}}, {}};
  return LinearGeluInfer::run(
      *launch, LinearGeluInfer::arguments(*launch, x, weight, nullptr, y, tokens, columns, depth, epilogue));
}
