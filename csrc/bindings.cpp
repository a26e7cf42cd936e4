// The pybind11 module bertfast._C. Importing it registers the CPU kernels with torch's dispatcher (static initialisers
// of csrc/cpu/*.cpp); it binds only what is no tensor op: facts about the build and the processor, for `bertfast
// doctor`, the encoder, which holds its weights, snapshots of Python objects and stamps of tensors, and the data
// pipeline's kernels.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <string>

#include "cpu/encoder.h"
#include "cpu/isa.h"
#include "data/bind.h"
#include "snapshot.h"
#include "stamp.h"

namespace py = pybind11;

static std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  found["avx2"] = __builtin_cpu_supports("avx2");
  found["fma"] = __builtin_cpu_supports("fma");
  found["avx512f"] = __builtin_cpu_supports("avx512f");
  found["avx512bf16"] = __builtin_cpu_supports("avx512bf16");
  found["avx512vnni"] = __builtin_cpu_supports("avx512vnni");
#endif
  return found;
}

static std::map<std::string, std::string> build_info() {
  return {{"torch", BERTFAST_TORCH_VERSION},
          {"compiler", __VERSION__},
          {"isa", bertfast::isa_name(bertfast::chosen_isa())},
          {"isa_detected", bertfast::isa_name(bertfast::detect_isa())},
          {"bfloat16", bertfast::multiplies_pairs() ? "pairs" : "float"}};
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "bertfast's C++ kernels; importing this module registers them with torch's dispatcher";
  m.def("cpu_features", &cpu_features, "Processor features that matter here, name to whether present");
  m.def("build_info", &build_info,
        "Build and run-time facts: torch, compiler, isa (in use), isa_detected, "
        "bfloat16 (how it is multiplied)");

  using bertfast::Encoder;
  const py::call_guard<py::gil_scoped_release> unlocked;
  py::class_<Encoder>(m, "Encoder", "BERT layers for inference on a CPU; see bertfast/nn/stack.py")
      .def(py::init<at::ScalarType, bool, int64_t, double, int64_t, const std::vector<Encoder::Parameters>&,
                    const std::vector<std::pair<double, double>>&>(),
           unlocked)
      .def("forward", &Encoder::forward, py::arg("x"), py::arg("cu_seqlens"), py::arg("max_seqlen"),
           py::arg("read") = py::none(), unlocked)
      .def("is_current", &Encoder::is_current)
      .def("nbytes", &Encoder::nbytes);

  using bertfast::Snapshot;
  py::class_<Snapshot>(m, "Snapshot", "Whether Python objects are what they were; see csrc/snapshot.h")
      .def(py::init<const py::object&, const std::vector<py::object>&, const py::tuple&, const py::set&>())
      .def("holds", &Snapshot::holds);

  using bertfast::Stamp;
  py::class_<Stamp>(m, "Stamp", "Whether tensors lie where they lay; see csrc/stamp.h")
      .def(py::init<const py::object&>())
      .def("holds", &Stamp::holds);

  bertfast::data::bind_data(m);
}
