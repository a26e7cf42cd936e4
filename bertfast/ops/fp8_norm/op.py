"""fp8_norm: dropout_add_norm that also writes its result in FP8, as the next product reads it, and in backward its gradient.

Forward gives y twice: in the dtype of the residual stream, and in FP8 with the transposed copy that a weight gradient reads.
Backward gives the gradient of x, which is a product's output, in FP8 alone. Scales are as in fp8_gelu. Dropout drops what
dropout_add_norm drops with the same `rng`.
"""

import torch

from bertfast import _library
from bertfast.ops.fp8_norm import reference

_INPUTS = "Tensor x, Tensor? bias, Tensor? residual, Tensor weight"
_SCALING = "Tensor scale, Tensor(a!) amax, ScalarType dtype, bool transposed"
_library.define(
    f"fp8_norm_fwd({_INPUTS}, Tensor norm_bias, float eps, float dropout_p, Tensor? rng, {_SCALING}) "
    "-> (Tensor y, Tensor mean, Tensor rstd, Tensor y8, Tensor y8t)"
)
_library.define(
    f"fp8_norm_rows({_INPUTS}, Tensor norm_bias, float eps, float dropout_p, Tensor? rng, ScalarType dtype) "
    "-> (Tensor y, Tensor y8, Tensor scale)"
)
_library.define(
    f"fp8_norm_bwd(Tensor dy, {_INPUTS}, Tensor mean, Tensor rstd, float dropout_p, Tensor? rng, {_SCALING}) "
    "-> (Tensor dx8, Tensor dx8t, Tensor dresidual, Tensor dbias, Tensor dweight, Tensor dnorm_bias)"
)
_library.reference("fp8_norm_fwd")(reference.forward)
_library.reference("fp8_norm_rows")(reference.rows)
_library.reference("fp8_norm_bwd")(reference.backward)


def _stream(x, residual):
    """An empty y."""
    return x.new_empty(x.shape, dtype=reference.stream_dtype(x, residual))


def _transposed(x, dtype, transposed):
    return x.new_empty(x.shape[::-1] if transposed else (0,), dtype=dtype)


@_library.fake("fp8_norm_fwd")
def _(x, bias, residual, weight, norm_bias, eps, dropout_p, rng, scale, amax, dtype, transposed):
    mean = x.new_empty(x.shape[0], dtype=reference.compute_dtype(x))
    y8t = _transposed(x, dtype, transposed)
    return _stream(x, residual), mean, torch.empty_like(mean), x.new_empty(x.shape, dtype=dtype), y8t


@_library.fake("fp8_norm_rows")
def _(x, bias, residual, weight, norm_bias, eps, dropout_p, rng, dtype):
    scale = x.new_empty((x.shape[0], 1), dtype=torch.float32)
    return _stream(x, residual), x.new_empty(x.shape, dtype=dtype), scale


@_library.fake("fp8_norm_bwd")
def _(dy, x, bias, residual, weight, mean, rstd, dropout_p, rng, scale, amax, dtype, transposed):
    dresidual = x.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dx8, dx8t = x.new_empty(x.shape, dtype=dtype), _transposed(x, dtype, transposed)
    return dx8, dx8t, dresidual, dbias, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


for _name in ("fp8_norm_fwd", "fp8_norm_rows", "fp8_norm_bwd"):
    _library.implement(_name, "CUDA", f"bertfast.ops.fp8_norm.triton:{_name}")
