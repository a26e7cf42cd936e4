// linear_dweight: a weight's gradient has few tiles and a long depth, so the tiles of the last round are cut along it.
#include <cutlass/epilogue/thread/activation.h>

#include "cutlass_product.cuh"

namespace bertfast {

using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::epilogue::thread::Identity, bf16, float, kRound>,
                             fusion::Sm90AccFetch>;
using LinearDweight = Product<StreamK, ColumnMajor, RowMajor, void, Tree>;

// Where a smaller share of the multiprocessors is idle over all rounds of tiles, no tile is cut: adding parts up costs
// as much. CUTLASS's own rule would leave up to half of them idle in the last round. Predicted, never measured.
constexpr double kMostIdle = 0.07;

static LinearDweight::Arguments arguments(Launch const& launch, const void* dy, const void* x, void* dweight,
                                          int64_t tokens, int64_t rows, int64_t columns) {
  auto made = LinearDweight::arguments(launch, dy, x, nullptr, dweight, rows, columns, tokens, {});
  int64_t pairs = (rows + 255) / 256 * ((columns + 255) / 256), at_once = launch.multiprocessors / 2;  // by clusters
  int64_t rounds = (pairs + at_once - 1) / at_once;
  double idle = 1.0 - static_cast<double>(pairs) / static_cast<double>(rounds * at_once);
  using Mode = decltype(made.scheduler.decomposition_mode);
  made.scheduler.decomposition_mode = idle > kMostIdle ? Mode::StreamK : Mode::DataParallel;
  return made;
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
