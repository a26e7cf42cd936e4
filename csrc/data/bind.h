// Binds the data pipeline's kernels into bertfast._C.
#pragma once

#include <pybind11/pybind11.h>

namespace bertfast::data {

void bind_data(pybind11::module_& m);

}  // namespace bertfast::data
