// linear_dweight: a weight's gradient has few tiles and a long depth, so the tiles of the last round are cut along it.
#include <cutlass/epilogue/thread/activation.h>

#include "cutlass_product.cuh"

namespace bertfast {

using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::epilogue::thread::Identity, bf16, float, kRound>,
                             fusion::Sm90AccFetch>;
using LinearDweight = Product<StreamK, ColumnMajor, RowMajor, void, Tree>;

static LinearDweight::Arguments arguments(Launch const& launch, const void* dy, const void* x, void* dweight,
                                          int64_t tokens, int64_t rows, int64_t columns) {
  return LinearDweight::arguments(launch, dy, x, nullptr, dweight, rows, columns, tokens, {});
}

}  // namespace bertfast

const char* bertfast_linear_dweight(const bertfast::Launch* launch, const void* dy, const void* x, void* dweight,
                                    int64_t tokens, int64_t rows, int64_t columns) {
  using namespace bertfast;
  return LinearDweight::run(*launch, arguments(*launch, dy, x, dweight, tokens, rows, columns));
}

int64_t bertfast_linear_dweight_workspace(int32_t multiprocessors, int64_t tokens, int64_t rows, int64_t columns) {
  using namespace bertfast;
  Launch launch{0, multiprocessors, nullptr, nullptr};
  return static_cast<int64_t>(
      LinearDweight::Gemm::get_workspace_size(arguments(launch, nullptr, nullptr, nullptr, tokens, rows, columns)));
}
