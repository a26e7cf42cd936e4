"""linear_gelu: gelu(x W^T + b). The product stays with the fastest library; bias, GELU and their gradients are one pass.

Saved for backward: the product before its bias, so backward does not multiply x and W again. The inside of a layer asks for two
more forms: `linear_gelu_infer`, which saves nothing, and `linear_dgelu`, back through the next Linear's product and GELU at once.
"""

from torch import Tensor

from bertfast import _cuda, _library
from bertfast.ops.linear.op import check_shapes
from bertfast.ops.linear_gelu import reference

_library.define("bias_gelu_fwd(Tensor pre, Tensor bias, bool tanh) -> Tensor")
_library.define("bias_gelu_bwd(Tensor dy, Tensor pre, Tensor bias, bool tanh) -> (Tensor dpre, Tensor dbias)")
_library.define("linear_gelu_fwd(Tensor x, Tensor weight, Tensor bias, bool tanh) -> (Tensor y, Tensor pre)")
_library.define(
    "linear_gelu_bwd(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor pre, bool tanh, bool needs_dx, bool needs_dweight) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)"
)
_library.define("linear_gelu_infer(Tensor x, Tensor weight, Tensor bias, bool tanh) -> Tensor")
_library.define(
    "linear_dgelu(Tensor dy, Tensor weight, Tensor pre, Tensor bias, bool tanh) -> (Tensor dpre, Tensor dbias)"
)
_library.reference("bias_gelu_fwd")(reference.bias_gelu_forward)
_library.reference("bias_gelu_bwd")(reference.bias_gelu_backward)
_library.reference("linear_gelu_fwd")(reference.forward)
_library.reference("linear_gelu_bwd")(reference.backward)
_library.reference("linear_gelu_infer")(reference.infer)
_library.reference("linear_dgelu")(reference.dgelu)


@_library.fake("bias_gelu_fwd")
def _(pre, bias, tanh):
    return pre.new_empty(pre.shape)


@_library.fake("bias_gelu_bwd")
def _(dy, pre, bias, tanh):
    return pre.new_empty(pre.shape), bias.new_empty(bias.shape)


@_library.fake("linear_gelu_fwd")
def _(x, weight, bias, tanh):
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, x.new_empty(y.shape)


@_library.fake("linear_gelu_bwd")
def _(dy, x, weight, bias, pre, tanh, needs_dx, needs_dweight):
    dx = dy.new_empty(x.shape if needs_dx else (0,))
    return dx, dy.new_empty(weight.shape if needs_dweight else (0,)), bias.new_empty(bias.shape)


@_library.fake("linear_gelu_infer")
def _(x, weight, bias, tanh):
    return x.new_empty(x.shape[0], weight.shape[0])


@_library.fake("linear_dgelu")
def _(dy, weight, pre, bias, tanh):
    return pre.new_empty(pre.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, ctx.tanh = inputs
    _, pre = output
    ctx.mark_non_differentiable(pre)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, pre)


@_library.once_differentiable
def _backward(ctx, dy, _dpre):
    if dy is None:
        return None, None, None, None
    x, weight, bias, pre = ctx.saved_tensors
    needs_dx, needs_dweight, needs_dbias, _ = ctx.needs_input_grad
    dx, dweight, dbias = _library.op("linear_gelu_bwd")(
        dy.contiguous(), x, weight, bias, pre, ctx.tanh, needs_dx, needs_dweight
    )
    return dx if needs_dx else None, dweight if needs_dweight else None, dbias if needs_dbias else None, None


_library.differentiate("linear_gelu_fwd", _backward, _setup_context)
for _name in ("bias_gelu_fwd", "bias_gelu_bwd", "linear_gelu_fwd", "linear_gelu_bwd"):
    _library.implement(_name, "CUDA", f"bertfast.ops.linear_gelu.triton:{_name}")
    _library.candidate(_name, f"bertfast.ops.linear_gelu.cheap_erf:{_name}")
for _name in ("linear_gelu_infer", "linear_dgelu"):
    _library.implement(_name, "CUDA", f"bertfast.ops.linear_gelu.torch_products:{_name}")
for _name in ("linear_gelu_fwd", "linear_gelu_infer", "linear_dgelu"):
    _library.candidate(_name, f"bertfast.ops.linear_gelu.gluon:{_name}", fused=True)
    _library.candidate(_name, f"bertfast.ops.linear_gelu.cutlass:{_name}", fused=True, absence=_cuda.absence)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str = "none") -> Tensor:
    """gelu(x W^T + b), the first half of a transformer's feed-forward.

    Args:
        x: [..., K].
        weight: [N, K] of x's dtype.
        bias: [N].
        approximate: "none" for the exact erf form that BERT was trained with, "tanh" for the approximation, as in
            `torch.nn.functional.gelu`.

    Returns:
        [..., N] in x's dtype; bias and GELU are computed in float32.

    Raises:
        ValueError: on shapes or dtypes that do not belong together, or another `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'linear_gelu: approximate must be "none" or "tanh", got {approximate!r}')
    check_shapes("linear_gelu", x, weight, bias)
    y, _ = _library.op("linear_gelu_fwd")(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, approximate == "tanh")
    return y.view(*x.shape[:-1], weight.shape[0])
