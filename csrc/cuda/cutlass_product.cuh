// What the products share: how a CUTLASS kernel is put together, and how one is launched.
//
// Clusters of 2 x 1 blocks: both read the same block of weights, which TMA sends to the two at once (multicast).
#pragma once

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cstdio>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "products.h"

namespace bertfast {

using bf16 = cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
constexpr int kAlignment = 8;  // elements: 16 bytes
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;

namespace fusion = cutlass::epilogue::fusion;

// A warpgroup has a tile of 64 x 256 for itself; while it is in its epilogue the other one multiplies.
struct PingPong {
  using Block = cute::Shape<cute::_64, cute::_256, cute::_64>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  using Scheduler = void;
};

// Two warpgroups share a tile of 128 x 256, and the last, partly filled round of tiles is cut along the depth
// (stream-K).
struct StreamK {
  using Block = cute::Shape<cute::_128, cute::_256, cute::_64>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Scheduler = cutlass::gemm::StreamKScheduler;
};

// C: the type of the matrix that the epilogue loads, void for none. Callbacks: the tree of the epilogue.
template <class Schedule, class LayoutA, class LayoutB, class C, class Callbacks>
struct Product {
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename Schedule::Block, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, C, RowMajor, kAlignment, bf16, RowMajor,
      kAlignment, typename Schedule::Epilogue, Callbacks>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, bf16, LayoutA, kAlignment, bf16, LayoutB, kAlignment, float,
      typename Schedule::Block, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      typename Schedule::Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
                                                      CollectiveEpilogue, typename Schedule::Scheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Arguments = typename Gemm::Arguments;
  using EpilogueArguments = typename CollectiveEpilogue::FusionCallbacks::Arguments;

  // Of a [m, k] b [n, k]^T to d [m, n]; where LayoutA or LayoutB say so, a lies as [k, m] or b as [k, n].
  static Arguments arguments(Launch const& launch, const void* a, const void* b, const void* c, void* d, int64_t rows,
                             int64_t columns, int64_t depth, EpilogueArguments const& epilogue) {
    int m = static_cast<int>(rows), n = static_cast<int>(columns), k = static_cast<int>(depth);
    auto stride_a = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, cute::make_shape(m, k, 1));
    auto stride_b = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, cute::make_shape(n, k, 1));
    auto stride_c = cutlass::make_cute_packed_stride(typename Kernel::StrideC{}, cute::make_shape(m, n, 1));
    auto stride_d = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, cute::make_shape(m, n, 1));
    Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<const bf16*>(a), stride_a, static_cast<const bf16*>(b), stride_b},
        {epilogue, static_cast<const typename Kernel::ElementC*>(c), stride_c, static_cast<bf16*>(d), stride_d}};
    arguments.hw_info.device_id = launch.device;
    arguments.hw_info.sm_count = launch.multiprocessors;
    return arguments;
  }

  static const char* run(Launch const& launch, Arguments const& arguments);
};

inline const char* reason(const char* step, const char* text) {
  static thread_local char message[256];
  std::snprintf(message, sizeof(message), "%s: %s", step, text);
  return message;
}

template <class Schedule, class LayoutA, class LayoutB, class C, class Callbacks>
const char* Product<Schedule, LayoutA, LayoutB, C, Callbacks>::run(Launch const& launch, Arguments const& arguments) {
  // The CUDA runtime that is linked in keeps its own word on the current device: the caller's is said to it.
  cudaError_t device = cudaSetDevice(launch.device);
  if (device != cudaSuccess) return reason("device", cudaGetErrorString(device));
  Gemm gemm;
  cutlass::Status status = Gemm::can_implement(arguments);
  if (status != cutlass::Status::kSuccess)
    return reason("shapes or alignment", cutlass::cutlassGetStatusString(status));
  auto stream = static_cast<cudaStream_t>(launch.stream);
  status = gemm.initialize(arguments, launch.workspace, stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
  if (status == cutlass::Status::kSuccess) return "";
  cudaError_t error = cudaGetLastError();
  return reason("launch", error == cudaSuccess ? cutlass::cutlassGetStatusString(status) : cudaGetErrorString(error));
}

}  // namespace bertfast
