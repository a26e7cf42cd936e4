"""dropout_add_norm: dropout(x + bias) + residual, then layer norm, one pass each way.

Forward reads x and residual and writes y; backward reads dy, x and residual and writes both gradients. Saving x rather
than the sum costs the same bytes and keeps inference and training on one op.
"""

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops import rng as dropout_bits
from bertfast.ops.dropout_add_norm import reference

_library.define(
    "dropout_add_norm_fwd(Tensor x, Tensor? bias, Tensor? residual, Tensor weight, Tensor norm_bias, float eps, "
    "float dropout_p, Tensor? rng) -> (Tensor y, Tensor mean, Tensor rstd)"
)
_library.define(
    "dropout_add_norm_bwd(Tensor dy, Tensor x, Tensor? bias, Tensor? residual, Tensor weight, Tensor mean, Tensor rstd, "
    "float dropout_p, Tensor? rng) -> (Tensor dx, Tensor dresidual, Tensor dbias, Tensor dweight, Tensor dnorm_bias)"
)
_library.reference("dropout_add_norm_fwd")(reference.forward)
_library.reference("dropout_add_norm_bwd")(reference.backward)


@_library.fake("dropout_add_norm_fwd")
def _(x, bias, residual, weight, norm_bias, eps, dropout_p, rng):
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    statistics = x.new_empty(x.shape[0], dtype=reference.compute_dtype(x))
    return x.new_empty(x.shape, dtype=dtype), statistics, torch.empty_like(statistics)


@_library.fake("dropout_add_norm_bwd")
def _(dy, x, bias, residual, weight, mean, rstd, dropout_p, rng):
    absent = x.new_empty(0)
    dresidual = absent if residual is None else residual.new_empty(residual.shape)
    dbias = torch.empty_like(absent) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), dresidual, dbias, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, bias, residual, weight, _, _, dropout_p, rng = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, bias, residual, weight, mean, rstd, rng)
    ctx.dropout_p = dropout_p


@_library.once_differentiable
def _backward(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 8
    x, bias, residual, weight, mean, rstd, rng = ctx.saved_tensors
    dx, dresidual, dbias, dweight, dnorm_bias = _library.op("dropout_add_norm_bwd")(
        dy.contiguous(), x, bias, residual, weight, mean, rstd, ctx.dropout_p, rng
    )
    return (
        dx,
        None if bias is None else dbias,
        None if residual is None else dresidual,
        dweight,
        dnorm_bias,
        None,
        None,
        None,
    )


_library.differentiate("dropout_add_norm_fwd", _backward, _setup_context)


def dropout_add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    *,
    bias: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
) -> Tensor:
    """Layer norm of `dropout(x + bias) + residual` in one pass.

    Args:
        x: [..., E], float32, bfloat16, float16 or float64.
        residual: [..., E] as x, or None. It may be float32 beside a bfloat16 x, as under autocast.
        weight, norm_bias: [E], the norm's parameters.
        bias: [E], the bias of the Linear that made x; its gradient comes from the same pass.
        eps: added to the variance.
        dropout_p: probability in [0, 1); applied to x + bias only. Realised in units of 1/65536.
        rng: int64 [2] from `bertfast.ops.rng.new_rng`, given when and only when dropout_p > 0.

    Returns:
        [..., E] in the promoted dtype of x and residual. Arithmetic is float32; repeating a call repeats every bit.

    Raises:
        ValueError: on shapes that do not belong together or a probability outside [0, 1).
    """
    dropout_bits.check_probability(dropout_p, rng, "dropout_add_norm")
    cols = x.shape[-1]
    for name, vector in (("weight", weight), ("norm_bias", norm_bias), ("bias", bias)):
        if vector is not None and vector.shape != (cols,):
            raise ValueError(
                f"dropout_add_norm: {name} must have shape ({cols},) as x ends in, got {tuple(vector.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"dropout_add_norm: residual has shape {tuple(residual.shape)} but x has {tuple(x.shape)}; they must be equal"
        )
    y, _, _ = _library.op("dropout_add_norm_fwd")(
        x.reshape(-1, cols).contiguous(),
        bias,
        None if residual is None else residual.reshape(-1, cols).contiguous(),
        weight,
        norm_bias,
        eps,
        dropout_p,
        rng,
    )
    return y if y.shape == x.shape else y.view(x.shape)  # FSDP warns of a layer that returns a view


_library.implement("dropout_add_norm_fwd", "CUDA", "bertfast.ops.dropout_add_norm.triton:forward")
_library.implement("dropout_add_norm_bwd", "CUDA", "bertfast.ops.dropout_add_norm.triton:backward")
