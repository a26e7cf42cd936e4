// Whether tensors lie where they lay: what code that reads them by address, such as a captured graph, asks on every
// call.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace bertfast {

// Storage, address, sizes, strides, dtype and device of each tensor; what is written in it does not count. The memory
// of a storage is not kept alive, but its identity is: no later storage can be taken for one that is gone.
class __attribute__((visibility("hidden"))) Stamp {
 public:
  // tensors: a sequence of tensors and None.
  explicit Stamp(const pybind11::object& tensors);

  // Never true for a tensor that answers for its own memory (fake, sharded) or has none to look at (sparse).
  bool holds(const pybind11::object& tensors) const;

 private:
  struct Seen {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    const void* address;
    std::vector<int64_t> layout;  // sizes, then strides
    c10::ScalarType dtype;
    c10::Device device;
    enum Kind { kAbsent, kPlain, kOpaque } kind;
  };

  static Seen see(PyObject* object);

  std::vector<Seen> seen_;
};

}  // namespace bertfast
