#include "stamp.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

namespace py = pybind11;

namespace bertfast {
namespace {

bool is_plain(const at::Tensor& t) { return t.has_storage() && !t.unsafeGetTensorImpl()->is_python_dispatch(); }

const void* address_of(const at::Tensor& t) {
  return static_cast<const char*>(t.storage().data()) + t.storage_offset() * static_cast<int64_t>(t.itemsize());
}

py::object fast(const py::object& tensors) {
  PyObject* list = PySequence_Fast(tensors.ptr(), "tensors must be a sequence");
  if (list == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(list);
}

}  // namespace

Stamp::Seen Stamp::see(PyObject* object) {
  Seen seen{c10::weak_intrusive_ptr<c10::StorageImpl>(c10::intrusive_ptr<c10::StorageImpl>()),
            nullptr,
            {},
            c10::ScalarType::Undefined,
            c10::Device(c10::kCPU),
            object == Py_None ? Seen::kAbsent : Seen::kOpaque};
  if (object == Py_None) return seen;
  if (!THPVariable_Check(object)) throw py::type_error("tensors must hold tensors and None");
  const at::Tensor& t = THPVariable_Unpack(object);
  if (!is_plain(t)) return seen;
  seen.storage = t.storage().getWeakStorageImpl();
  seen.address = address_of(t);
  seen.layout.assign(t.sizes().begin(), t.sizes().end());
  seen.layout.insert(seen.layout.end(), t.strides().begin(), t.strides().end());
  seen.dtype = t.scalar_type();
  seen.device = t.device();
  seen.kind = Seen::kPlain;
  return seen;
}

Stamp::Stamp(const py::object& tensors) {
  const py::object list = fast(tensors);
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(list.ptr());
  seen_.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) seen_.push_back(see(PySequence_Fast_GET_ITEM(list.ptr(), i)));
}

bool Stamp::holds(const py::object& tensors) const {
  const py::object list = fast(tensors);
  if (PySequence_Fast_GET_SIZE(list.ptr()) != static_cast<Py_ssize_t>(seen_.size())) return false;
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Seen& seen = seen_[i];
    PyObject* object = PySequence_Fast_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
    if (object == Py_None || seen.kind != Seen::kPlain) {
      if (object == Py_None && seen.kind == Seen::kAbsent) continue;
      return false;
    }
    if (!THPVariable_Check(object)) return false;
    const at::Tensor& t = THPVariable_Unpack(object);
    if (!is_plain(t)) return false;
    const auto sizes = t.sizes(), strides = t.strides();
    if (t.storage().unsafeGetStorageImpl() != seen.storage._unsafe_get_target() || address_of(t) != seen.address ||
        t.scalar_type() != seen.dtype || t.device() != seen.device || 2 * sizes.size() != seen.layout.size() ||
        !std::equal(sizes.begin(), sizes.end(), seen.layout.begin()) ||
        !std::equal(strides.begin(), strides.end(), seen.layout.begin() + static_cast<std::ptrdiff_t>(sizes.size()))) {
      return false;
    }
  }
  return true;
}

}  // namespace bertfast
