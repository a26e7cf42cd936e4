"""fp8_linear: a product of FP8 matrices, both with their inner dimension contiguous, as FP8 tensor cores take them."""

from bertfast import _library
from bertfast.ops.fp8_linear import reference

_library.define(
    "fp8_linear(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias, ScalarType dtype, bool fast) -> Tensor"
)
_library.reference("fp8_linear")(reference.forward)


@_library.fake("fp8_linear")
def _(a, b, scale_a, scale_b, bias, dtype, fast):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


_library.implement("fp8_linear", "CUDA", "bertfast.ops.fp8_linear.torch_products:fp8_linear")
