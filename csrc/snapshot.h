// Whether Python objects are what they were: so that a model that was looked through once need not be looked through on
// every call, which takes a tenth of a short one.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace bertfast {

// The classes of objects and what stands in their dicts, and in the dicts that stand there under some names (a module's
// parameters, children and hooks), each by identity. A value of another class than plain ones (numbers, strings,
// collections, tensors, modules) is not looked at: what it is could hold the owner, and keep it alive. The key that it
// stands under is.
class __attribute__((visibility("hidden"))) Snapshot {
 public:
  // owner: an object that may in turn own this; no reference to it is kept. others: kept. kinds: further plain classes.
  // inside: names of the dicts to be looked into, strings.
  Snapshot(const pybind11::object& owner, const std::vector<pybind11::object>& others, const pybind11::tuple& kinds,
           const pybind11::set& inside);

  bool holds(const pybind11::object& owner) const;

 private:
  struct Table {
    pybind11::object dict;  // null for the owner's own, which may lead back to the owner
    std::vector<std::pair<pybind11::object, pybind11::object>> items;  // a value is null where it is not looked at
    mutable uint64_t version = 0;  // of the dict when its items were last found the same; 0: not known
  };
  struct Seen {
    pybind11::object object, dict;  // null for the owner
    PyTypeObject* type;
  };

  void see(const pybind11::object& object, bool keep, const pybind11::tuple& kinds, const pybind11::set& inside);
  void list(const pybind11::object& dict, bool keep, const pybind11::tuple& kinds, const pybind11::set& inside);

  std::vector<Seen> seen_;
  std::vector<Table> tables_;
};

}  // namespace bertfast
