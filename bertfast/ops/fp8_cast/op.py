"""fp8_cast: tensors that no pass of ours makes, and weights, in FP8 with the transposed copies that products read; their scales.

real = stored * scale (`bertfast.ops.fp8`). `fp8_cast` takes one scale for a tensor, which earlier steps decided, and raises `amax`
to the largest magnitude of this one; `fp8_update_scales` makes the next step's scales of it. `fp8_cast_rows` gives each row the
scale of its own largest magnitude. `fp8_cast_weights` casts all weights of a model, each by its own largest magnitude.
"""

import torch

from bertfast import _library
from bertfast.ops.fp8_cast import reference

_library.define(
    "fp8_cast(Tensor x, Tensor scale, Tensor(a!) amax, ScalarType dtype, bool transposed) -> (Tensor y, Tensor yt)"
)
_library.define("fp8_cast_rows(Tensor x, ScalarType dtype) -> (Tensor y, Tensor scale)")
_library.define(
    "fp8_cast_weights(Tensor[] weights, Tensor(a!) scales, Tensor(b!)[] casts, Tensor(c!)[] transposed) -> ()"
)
_library.define(
    "fp8_update_scales(Tensor(a!) history, Tensor(b!) amax, Tensor(c!) scale, Tensor largest, float margin) -> ()"
)
_library.reference("fp8_cast")(reference.cast)
_library.reference("fp8_cast_rows")(reference.cast_rows)
_library.reference("fp8_cast_weights")(reference.cast_weights)
_library.reference("fp8_update_scales")(reference.update_scales)


@_library.fake("fp8_cast")
def _(x, scale, amax, dtype, transposed):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[::-1] if transposed else (0,), dtype=dtype)


@_library.fake("fp8_cast_rows")
def _(x, dtype):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((x.shape[0], 1), dtype=torch.float32)


@_library.fake("fp8_cast_weights")
def _(weights, scales, casts, transposed):
    return None


@_library.fake("fp8_update_scales")
def _(history, amax, scale, largest, margin):
    return None


for _name in ("fp8_cast", "fp8_cast_rows", "fp8_cast_weights", "fp8_update_scales"):
    _library.implement(_name, "CUDA", f"bertfast.ops.fp8_cast.triton:{_name}")
