// linear_gelu_fwd: bias and GELU in the epilogue, which stores the product before its bias too.
#include "gelu_epilogue.cuh"

namespace bertfast {

using Tree = fusion::Sm90EVT<
    Compute<Gelu, bf16>,
    fusion::Sm90EVT<Compute<cutlass::plus, float>,
                    fusion::Sm90EVT<typename Second<PingPong>::Store, fusion::Sm90AccFetch>, Bias<PingPong>>>;
using LinearGelu = Product<PingPong, RowMajor, ColumnMajor, void, Tree>;

}  // namespace bertfast

const char* bertfast_linear_gelu(const bertfast::Launch* launch, const void* x, const void* weight, const void* bias,
                                 void* y, void* pre, int64_t tokens, int64_t columns, int64_t depth) {
  using namespace bertfast;
  auto shape = cute::make_shape(static_cast<int>(tokens), static_cast<int>(columns), 1);
  auto stride = cutlass::make_cute_packed_stride(typename Second<PingPong>::Aux::Stride{}, shape);
  typename LinearGelu::EpilogueArguments epilogue{
      {{{}, {static_cast<bf16*>(pre), stride}}, {static_cast<const bf16*>(bias)}, {}}, {}};
  return LinearGelu::run(*launch,
                         LinearGelu::arguments(*launch, x, weight, nullptr, y, tokens, columns, depth, epilogue));
}
