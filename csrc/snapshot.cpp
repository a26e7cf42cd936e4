#include "snapshot.h"

namespace py = pybind11;

namespace bertfast {
namespace {

bool is_plain(PyObject* value, const py::tuple& kinds) {
  if (value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
      PyUnicode_CheckExact(value) || PyDict_Check(value)) {
    return true;
  }
  const int found = PyObject_IsInstance(value, kinds.ptr());
  if (found < 0) throw py::error_already_set();
  return found == 1;
}

py::object dict_of(const py::handle& object) {
  PyObject* dict = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (dict == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(dict);
}

// CPython's tag of a dict, another one after every change (PEP 509); 0 where this Python has none.
uint64_t version_of(PyObject* dict) {
#if !defined(PYPY_VERSION) && PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
  return 0;
#endif
}

}  // namespace

Snapshot::Snapshot(const py::object& owner, const std::vector<py::object>& others, const py::tuple& kinds,
                   const py::set& inside) {
  see(owner, false, kinds, inside);
  for (const py::object& other : others) see(other, true, kinds, inside);
}

void Snapshot::see(const py::object& object, bool keep, const py::tuple& kinds, const py::set& inside) {
  const py::object dict = dict_of(object);
  seen_.push_back({keep ? object : py::object(), keep ? dict : py::object(), Py_TYPE(object.ptr())});
  list(dict, keep, kinds, inside);
}

void Snapshot::list(const py::object& dict, bool keep, const py::tuple& kinds, const py::set& inside) {
  Table table{keep ? dict : py::object(), {}};
  std::vector<py::object> inner;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(dict.ptr(), &at, &key, &value);) {
    const auto object = py::reinterpret_borrow<py::object>(value);
    table.items.emplace_back(py::reinterpret_borrow<py::object>(key), is_plain(value, kinds) ? object : py::object());
    if (PyDict_Check(value) && PySet_Contains(inside.ptr(), key) == 1) inner.push_back(object);
  }
  tables_.push_back(std::move(table));
  for (const py::object& each : inner) list(each, true, kinds, py::set());
}

bool Snapshot::holds(const py::object& owner) const {
  for (const Seen& seen : seen_) {
    const py::handle object = seen.object ? py::handle(seen.object) : py::handle(owner);
    if (Py_TYPE(object.ptr()) != seen.type || (seen.dict && !dict_of(object).is(seen.dict))) return false;
  }
  const py::object own = dict_of(owner);
  for (const Table& table : tables_) {
    PyObject *dict = table.dict ? table.dict.ptr() : own.ptr(), *key, *value;
    const uint64_t version = version_of(dict);
    if (version != 0 && version == table.version) continue;
    if (PyDict_Size(dict) != static_cast<Py_ssize_t>(table.items.size())) return false;
    auto item = table.items.begin();
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); ++item) {
      if (item->first.ptr() != key || (item->second && item->second.ptr() != value)) return false;
    }
    table.version = version;
  }
  return true;
}

}  // namespace bertfast
