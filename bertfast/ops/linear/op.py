"""linear: a Linear layer whose products go to the fastest library there is for this processor and dtype.

Its backward is one op for a Linear that stands alone. Inside a layer it is `linear_add_dx`, which adds to the residual's gradient,
and `linear_dweight`, which gives the weight's gradient in the weight's dtype, and the bias's, from the rows that it reads anyway.
"""

from torch import Tensor

from bertfast import _cuda, _library
from bertfast.ops.linear import reference

_library.define("linear_fwd(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define(
    "linear_bwd(Tensor dy, Tensor x, Tensor weight, bool has_bias, bool needs_dx, bool needs_dweight) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)"
)
_library.define("linear_add_dx(Tensor dy, Tensor weight, Tensor(a!) total) -> ()")
_library.define("linear_dweight(Tensor dy, Tensor x, ScalarType dtype, bool sums) -> (Tensor dweight, Tensor dbias)")
_library.reference("linear_fwd")(reference.forward)
_library.reference("linear_bwd")(reference.backward)
_library.reference("linear_add_dx")(reference.add_dx)
_library.reference("linear_dweight")(reference.dweight)


@_library.fake("linear_fwd")
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@_library.fake("linear_bwd")
def _(dy, x, weight, has_bias, needs_dx, needs_dweight):
    return (
        dy.new_empty(x.shape if needs_dx else (0,)),
        dy.new_empty(weight.shape if needs_dweight else (0,)),
        dy.new_empty((weight.shape[0],) if has_bias else (0,)),
    )


@_library.fake("linear_add_dx")
def _(dy, weight, total):
    return None


@_library.fake("linear_dweight")
def _(dy, x, dtype, sums):
    sizes = dy.shape[1], x.shape[1]
    return dy.new_empty(sizes, dtype=dtype), dy.new_empty(sizes[:1] if sums else (0,), dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


@_library.once_differentiable
def _backward(ctx, dy):
    x, weight = ctx.saved_tensors
    needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad
    dx, dweight, dbias = _library.op("linear_bwd")(dy.contiguous(), x, weight, needs_dbias, needs_dx, needs_dweight)
    return dx if needs_dx else None, dweight if needs_dweight else None, dbias if needs_dbias else None


_library.differentiate("linear_fwd", _backward, _setup_context)
for _name in ("linear_fwd", "linear_bwd"):
    _library.implement(_name, "CUDA", f"bertfast.ops.linear.triton:{_name}")
for _name in ("linear_add_dx", "linear_dweight"):
    _library.implement(_name, "CUDA", f"bertfast.ops.linear.torch_products:{_name}")
_library.candidate("linear_bwd", "bertfast.ops.linear.ending_sums:linear_bwd")
for _name in ("linear_fwd", "linear_add_dx", "linear_dweight"):
    _library.candidate(_name, f"bertfast.ops.linear.gluon:{_name}", fused=True)
_library.candidate("linear_dweight", "bertfast.ops.linear.cutlass:linear_dweight", fused=True, absence=_cuda.absence)


def check_shapes(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """ValueError unless x [..., K], weight [N, K] and bias [N] belong together and share a dtype."""
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        bias_shape = None if bias is None else tuple(bias.shape)
        raise ValueError(
            f"{name}: x {tuple(x.shape)}, weight {tuple(weight.shape)} and bias {bias_shape} "
            "do not fit x [..., K], weight [N, K], bias [N]"
        )
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        raise ValueError(f"{name}: x is {x.dtype} but the weight is {weight.dtype}; cast one of them")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`.

    Args:
        x: [..., K].
        weight: [N, K] of x's dtype.
        bias: [N] or None.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: on shapes or dtypes that do not belong together.
    """
    check_shapes("linear", x, weight, bias)
    y = _library.op("linear_fwd")(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])
