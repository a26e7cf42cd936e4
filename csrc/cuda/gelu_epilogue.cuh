// The epilogues of linear_gelu as nodes and trees of CUTLASS's visitors.
#pragma once

#include "cutlass_product.cuh"
#include "gelu_math.h"

namespace bertfast {

// Of v = product + bias, by element of a fragment.
template <class T>
struct Gelu;

template <int N>
struct Gelu<cutlass::Array<float, N>> {
  CUTLASS_HOST_DEVICE cutlass::Array<float, N> operator()(cutlass::Array<float, N> const& v) const {
    cutlass::Array<float, N> y;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) y[i] = gelu(v[i]);
    return y;
  }
};

template <>
struct Gelu<float> {};

// dy * gelu'(v).
template <class T>
struct GeluGradient;

template <int N>
struct GeluGradient<cutlass::Array<float, N>> {
  CUTLASS_HOST_DEVICE cutlass::Array<float, N> operator()(cutlass::Array<float, N> const& dy,
                                                          cutlass::Array<float, N> const& v) const {
    cutlass::Array<float, N> dpre;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) dpre[i] = dy[i] * gelu_gradient(v[i]);
    return dpre;
  }
};

template <>
struct GeluGradient<float> {};

template <template <class> class Function, class Out>
using Compute = fusion::Sm90Compute<Function, Out, float, kRound>;

template <class Schedule>
using Bias = fusion::Sm90RowBroadcast<0, typename Schedule::Block, bf16, float>;

// Where a second matrix [m, n] of bfloat16 is staged on its way out.
template <class Schedule>
struct Second {
  using Descriptor =
      cutlass::epilogue::collective::detail::EpilogueDescriptor<typename Schedule::Block,
                                                                cutlass::epilogue::collective::EpilogueTileAuto, void,
                                                                bf16, typename Schedule::Epilogue>;
  using Aux = cutlass::epilogue::collective::detail::AuxStoreDescriptor<Descriptor, RowMajor, bf16>;
  using Store = fusion::Sm90AuxStore<Aux::Stages, typename Descriptor::EpilogueTile, bf16, kRound, typename Aux::Stride,
                                     typename Aux::SmemLayoutAtom, typename Aux::CopyOpR2S>;
};

}  // namespace bertfast
