"""fp8_gelu: bias_gelu with its result in FP8, cast by the pass that makes it, and the transposed copy for a weight's gradient.

A number is its stored value times a scale. In training there is one scale for a tensor, which earlier steps decided, and `amax` is
raised to the largest magnitude of this one; in inference each row has a scale of its own.
"""

import torch

from bertfast import _library
from bertfast.ops.fp8_gelu import reference

_library.define(
    "fp8_gelu_fwd(Tensor pre, Tensor bias, bool tanh, Tensor scale, Tensor(a!) amax, ScalarType dtype, bool transposed) "
    "-> (Tensor y, Tensor yt)"
)
_library.define("fp8_gelu_rows(Tensor pre, Tensor bias, bool tanh, ScalarType dtype) -> (Tensor y, Tensor scale)")
_library.define(
    "fp8_gelu_bwd(Tensor dy, Tensor pre, Tensor bias, bool tanh, Tensor scale, Tensor(a!) amax, ScalarType dtype, "
    "bool transposed) -> (Tensor dpre, Tensor dpret, Tensor dbias)"
)
_library.reference("fp8_gelu_fwd")(reference.forward)
_library.reference("fp8_gelu_rows")(reference.rows)
_library.reference("fp8_gelu_bwd")(reference.backward)


@_library.fake("fp8_gelu_fwd")
def _(pre, bias, tanh, scale, amax, dtype, transposed):
    return pre.new_empty(pre.shape, dtype=dtype), pre.new_empty(pre.shape[::-1] if transposed else (0,), dtype=dtype)


@_library.fake("fp8_gelu_rows")
def _(pre, bias, tanh, dtype):
    return pre.new_empty(pre.shape, dtype=dtype), pre.new_empty((pre.shape[0], 1), dtype=torch.float32)


@_library.fake("fp8_gelu_bwd")
def _(dy, pre, bias, tanh, scale, amax, dtype, transposed):
    dpret = pre.new_empty(pre.shape[::-1] if transposed else (0,), dtype=dtype)
    return pre.new_empty(pre.shape, dtype=dtype), dpret, bias.new_empty(bias.shape)


for _name in ("fp8_gelu_fwd", "fp8_gelu_rows", "fp8_gelu_bwd"):
    _library.implement(_name, "CUDA", f"bertfast.ops.fp8_gelu.triton:{_name}")
