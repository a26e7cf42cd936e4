"""Optimizer steps of all parameters at once: the gradients' norm, AdamW and LAMB, clipping, and the copies that products read.

Every list has one tensor for each parameter, in the order of the groups. `sizes` says how many parameters a group has, and
`settings` holds its beta1, beta2, eps and weight decay, one group after another. Learning rates, the norm and whether the step is
withheld are on the device, and nothing is read from there. `reference` says what is computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bertfast import _library
from bertfast.ops.optimizer import reference

_PATH = "bertfast.ops.optimizer.triton"
_library.define("gradient_norm(Tensor[] gradients) -> Tensor")
_library.define(
    "adamw_step(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor(d!)[] steps, "
    "Tensor(e!)[] copies, int[] sizes, float[] settings, Tensor rates, Tensor? norm, float max_norm, Tensor? withheld) -> ()"
)
_library.define(
    "lamb_moments(Tensor[] weights, Tensor[] gradients, Tensor(a!)[] means, Tensor(b!)[] squares, Tensor(c!)[] steps, "
    "int[] sizes, float[] settings, Tensor? norm, float max_norm, Tensor? withheld) -> Tensor"
)
_library.define(
    "lamb_step(Tensor(a!)[] weights, Tensor[] means, Tensor[] squares, Tensor[] steps, Tensor(b!)[] copies, "
    "int[] sizes, float[] settings, Tensor rates, Tensor sums, Tensor? withheld) -> ()"
)
for _name in ("gradient_norm", "adamw_step", "lamb_moments", "lamb_step"):
    _library.reference(_name)(getattr(reference, _name))
    _library.implement(_name, "CUDA", f"{_PATH}:{_name}")


@_library.fake("gradient_norm")
def _(gradients):
    if not gradients:
        return torch.zeros(())
    dtypes = [reference.computed(g.dtype) for g in gradients]
    return gradients[0].new_empty((), dtype=torch.float64 if torch.float64 in dtypes else torch.float32)


@_library.fake("adamw_step")
def _(weights, gradients, means, squares, steps, copies, sizes, settings, rates, norm, max_norm, withheld):
    return None


@_library.fake("lamb_moments")
def _(weights, gradients, means, squares, steps, sizes, settings, norm, max_norm, withheld):
    if not weights:
        return torch.zeros(0, 2)
    return weights[0].new_empty((len(weights), 2), dtype=reference.computed(weights[0].dtype))


@_library.fake("lamb_step")
def _(weights, means, squares, steps, copies, sizes, settings, rates, sums, withheld):
    return None


def _check(
    name: str,
    columns: dict[str, Sequence[Tensor]],
    sizes: Sequence[int],
    settings: Sequence[float],
    rates: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    count = len(columns["weights"])
    for column, tensors in columns.items():
        if len(tensors) != count:
            raise ValueError(f"{name}: {column} has {len(tensors)} tensors but there are {count} weights")
    if sum(sizes) != count or any(size < 0 for size in sizes):
        raise ValueError(f"{name}: groups of {list(sizes)} parameters, but there are {count} weights")
    if len(settings) != reference.SETTINGS * len(sizes):
        raise ValueError(
            f"{name}: {len(settings)} settings for {len(sizes)} groups; each has beta1, beta2, eps, weight decay"
        )
    if rates is not None and rates.shape not in ((), (len(sizes),)):  # kernels read one for each group
        raise ValueError(
            f"{name}: rates have shape {tuple(rates.shape)}; give [] or one for each of {len(sizes)} groups"
        )
    if sums is not None and sums.shape != (count, 2):
        raise ValueError(f"{name}: sums have shape {tuple(sums.shape)}; lamb_moments gives [{count}, 2]")
    for number, (weight, copy) in enumerate(zip(columns["weights"], columns.get("copies", ()), strict=False)):
        if copy.numel() and copy.shape != weight.shape:
            shapes = f"{tuple(copy.shape)}, the weight's {tuple(weight.shape)}"
            raise ValueError(f"{name}: copies {number} has shape {shapes}; [0] stands for none")
    for column in columns.keys() - {"weights", "steps", "copies"}:
        for number, (weight, tensor) in enumerate(zip(columns["weights"], columns[column], strict=True)):
            if tensor.shape != weight.shape:
                shapes = f"{tuple(tensor.shape)}, the weight's {tuple(weight.shape)}"
                raise ValueError(f"{name}: {column} {number} has shape {shapes}")


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all numbers of all gradients; [] float32, float64 where a gradient is. The same bits every time."""
    return _library.op("gradient_norm")(gradients)


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    rates: Tensor,
    norm: Tensor | None = None,
    max_norm: float = 0.0,
    withheld: Tensor | None = None,
) -> None:
    """One step of AdamW (arXiv:1711.05101), in place; gradients are left as they are.

    Args:
        weights: float32, bfloat16 or float16; gradients and moments have their shapes and may have dtypes of their own.
        means, squares: the moments of each parameter.
        steps: [] float32, how many steps each parameter has had; one more after this.
        copies: for each parameter a tensor of its shape that gets the new weight as well, rounded to its dtype; [0] for none.
        sizes, settings: see above.
        rates: learning rates, [groups], or [] for all; float32 or float64.
        norm: [] of all gradients, by which they are clipped to `max_norm`; None for no clipping.
        withheld: [] float32; where it is not 0, nothing changes.

    Raises:
        ValueError: where lists, groups or shapes do not fit.
    """
    columns = {"weights": weights, "gradients": gradients, "means": means, "squares": squares}
    _check("adamw_step", columns | {"steps": steps, "copies": copies}, sizes, settings, rates)
    arguments = (weights, gradients, means, squares, steps, copies, sizes, settings, rates, norm, max_norm, withheld)
    _library.op("adamw_step")(*arguments)


def lamb_moments(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    norm: Tensor | None = None,
    max_norm: float = 0.0,
    withheld: Tensor | None = None,
) -> Tensor:
    """The first half of a step of LAMB (arXiv:1904.00962): moments and steps, in place. Arguments as of `adamw_step`.

    Returns:
        [n, 2] float32: of each parameter the sums of squares of its weight and of its direction with decay, zeros of a withheld
        step. Of sharded parameters they are to be added up over the ranks.

    Raises:
        ValueError: where lists, groups or shapes do not fit.
    """
    columns = {"weights": weights, "gradients": gradients, "means": means, "squares": squares, "steps": steps}
    _check("lamb_moments", columns, sizes, settings)
    arguments = (weights, gradients, means, squares, steps, sizes, settings, norm, max_norm, withheld)
    return _library.op("lamb_moments")(*arguments)


def lamb_step(
    weights: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    rates: Tensor,
    sums: Tensor,
    withheld: Tensor | None = None,
) -> None:
    """The second half: weights and their copies, in place, from the moments. Arguments as of `adamw_step`, and

    Args:
        sums: [n, 2] float32, what `lamb_moments` returned, added up over the ranks where parameters are sharded.

    Raises:
        ValueError: where lists, groups or shapes do not fit.
    """
    columns = {"weights": weights, "means": means, "squares": squares, "steps": steps, "copies": copies}
    _check("lamb_step", columns, sizes, settings, rates, sums)
    _library.op("lamb_step")(weights, means, squares, steps, copies, sizes, settings, rates, sums, withheld)
