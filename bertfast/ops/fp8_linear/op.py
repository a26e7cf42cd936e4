"""fp8_linear: a product of FP8 matrices, both with their inner dimension contiguous, as FP8 tensor cores take them.

`fp8_linear_add` adds it to a gradient that is there, without fast accumulation.
"""

from bertfast import _library
from bertfast.ops.fp8_linear import reference

_library.define(
    "fp8_linear(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, ScalarType dtype, bool fast) -> Tensor"
)
_library.define("fp8_linear_add(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor(a!) total) -> ()")
_library.reference("fp8_linear")(reference.forward)
_library.reference("fp8_linear_add")(reference.add)


@_library.fake("fp8_linear")
def _(a, b, scale_a, scale_b, bias, dtype, fast):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


@_library.fake("fp8_linear_add")
def _(a, b, scale_a, scale_b, total):
    return None


for _name in ("fp8_linear", "fp8_linear_add"):
    _library.implement(_name, "CUDA", f"bertfast.ops.fp8_linear.torch_products:{_name}")
    _library.candidate(_name, f"bertfast.ops.fp8_linear.gluon:{_name}", fused=True)
