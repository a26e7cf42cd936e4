// linear_dgelu: GELU's gradient in the epilogue of the product before it, which reads what forward stored, and sums of
// columns.
#include "gelu_epilogue.cuh"

namespace bertfast {

// Sums of a tile's columns go to memory, a row for each tile row; adding these up is the caller's. Past the last row
// TMA gives zeros, whose gradient is zero, so no element asks whether it is inside.
template <class Schedule>
using ColumnSums =
    fusion::Sm90RowReduction<cutlass::plus, cutlass::plus, cutlass::plus, 0, typename Schedule::Block, float, float,
                             kRound, cute::Stride<cute::_0, cute::_1, cute::_0>, 4, false, false, false>;

using Value = fusion::Sm90EVT<Compute<cutlass::plus, float>, fusion::Sm90SrcFetch<bf16>, Bias<PingPong>>;
using Gradient = fusion::Sm90EVT<Compute<GeluGradient, float>, fusion::Sm90AccFetch, Value>;
using Tree = fusion::Sm90EVT<Compute<cutlass::epilogue::thread::Identity, bf16>,
                             fusion::Sm90EVT<ColumnSums<PingPong>, Gradient>>;
using LinearDgelu = Product<PingPong, RowMajor, RowMajor, bf16, Tree>;

}  // namespace bertfast

const char* bertfast_linear_dgelu(const bertfast::Launch* launch, const void* dy, const void* weight, const void* pre,
                                  const void* bias, void* dpre, void* sums, int64_t tokens, int64_t columns,
                                  int64_t depth) {
  using namespace bertfast;
  typename Value::Arguments value{{}, {static_cast<const bf16*>(bias)}, {}};
  typename LinearDgelu::EpilogueArguments epilogue{{{{}, value, {}}, {sums}}, {}};
  return LinearDgelu::run(*launch,
                          LinearDgelu::arguments(*launch, dy, weight, pre, dpre, tokens, columns, depth, epilogue));
}
