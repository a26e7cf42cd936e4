// What the host functions of the CPU ops share: dtype names, the call to an op's eager reference for dtypes that the
// kernels do not take, the dropout state, and the checks that keep a kernel from reading out of bounds.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "isa.h"

namespace bertfast {

// Storage types of the kernels; anything else goes to the reference.
inline bool is_kernel_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16;
}

// Calls `bertfast_reference::NAME`. `Signature` is the C++ signature of the schema, as for `typed<>()`.
template <class Signature, class... Args>
auto call_reference(const char* name, Args&&... args) {
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  return handle.typed<Signature>().call(std::forward<Args>(args)...);
}

struct DropoutState {
  uint32_t key0 = 0, key1 = 0, offset = 0;
};

// Reads (seed, offset) out of the int64 [2] tensor that the ops take; all zero where there is none.
inline DropoutState dropout_state(const std::optional<at::Tensor>& rng) {
  if (!rng.has_value() || !rng->defined()) return {};
  TORCH_CHECK_VALUE(rng->scalar_type() == at::kLong && rng->numel() == 2 && rng->is_contiguous(),
                    "bertfast: rng must be a contiguous int64 tensor of 2 elements (seed, offset), got ",
                    rng->scalar_type(), " of shape ", rng->sizes());
  const int64_t* state = rng->const_data_ptr<int64_t>();
  const uint64_t seed = static_cast<uint64_t>(state[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(state[1])};
}

// Thresholds and keep rates of bertfast/ops/rng.py. nearbyint rounds halves to even, as Python's round does.
inline uint32_t threshold_rows(double p) { return static_cast<uint32_t>(std::nearbyint(p * 65536)); }
inline uint32_t threshold_attention(double p) {
  return static_cast<uint32_t>(std::fmin(255.0, std::fmax(1.0, std::nearbyint(p * 256))));
}

// Parameters as contiguous fp32, whatever they are stored in: E floats, so the cost is nothing.
inline at::Tensor as_float(const at::Tensor& t) { return t.to(at::kFloat).contiguous(); }

}  // namespace bertfast
