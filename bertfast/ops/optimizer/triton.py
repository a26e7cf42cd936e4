"""Optimizer steps on GPUs: one launch reads and writes everything of every parameter, in chunks of a table of addresses.

A step is bound by bytes: float32 weights with bfloat16 copies take 16 in and 14 out for each number, bfloat16 weights 8 and 6.
What a program needs beside them (addresses, scalars) is 100 bytes for 8,192 numbers. Scalars that depend on the step (bias
corrections, learning rate, clipping) are computed in float64 by `factors_kernel`, a lane for a parameter, which counts steps.

    adamw_step    factors, step
    lamb_moments  factors, step (moments alone; sums of squares of each chunk), the sums of each parameter
    lamb_step     factors (with the trust ratio), step (weights alone)
    gradient_norm squares of each chunk, and their sum by one program

Sums are added in an order that sizes alone decide.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from bertfast.ops.optimizer import reference
from bertfast.ops.optimizer.addresses import Columns, Part, Table, is_placing, table
from bertfast.ops.optimizer.triton_kernels import (
    FACTORS,
    factors_kernel,
    norm_end_kernel,
    norm_kernel,
    step_kernel,
    sums_kernel,
)
from bertfast.triton import tables
from bertfast.triton.launch import architecture, cdiv, launch

TABLES = tables.load("optimizer", Path(__file__).with_name("launch.json"))
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_LANES, _END = 128, 4096


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    addressed = table(Columns(gradients=gradients)) if gradients else None
    if addressed is None or is_placing():
        return reference.gradient_norm(gradients if addressed is None and not is_placing() else ())
    device, chunks = gradients[0].device, addressed.chunks.shape[0]
    partial = torch.empty(chunks, dtype=torch.float32, device=device)
    norm = torch.empty((), dtype=torch.float32, device=device)
    tile = TABLES.find("norm", architecture(device))
    for part in addressed.parts:
        launch(
            norm_kernel,
            (part.chunks,),
            (addressed.rows, addressed.chunks, partial, part.first),
            {"TYPE": _TYPES[_there(part.gradient)], "BLOCK": tile["block"]},
            warps=tile["warps"],
        )
    launch(norm_end_kernel, (1,), (partial, norm, chunks), {"BLOCK": _END}, warps=8)
    return norm


def _there(dtype: torch.dtype | None) -> torch.dtype:
    assert dtype is not None
    return dtype


def _factors(
    addressed: Table,
    device: torch.device,
    withheld: Tensor | None,
    *,
    rates: Tensor | None = None,
    norm: Tensor | None = None,
    max_norm: float = 0.0,
    sums: Tensor | None = None,
    advance: bool = False,
) -> Tensor:
    """Factors [n, 8] of an update, float32. advance: count the step."""
    count = addressed.parameters
    factors = torch.empty(count, FACTORS, dtype=torch.float32, device=device)
    if rates is not None:
        rates = rates.contiguous()
    launch(
        factors_kernel,
        (cdiv(count, _LANES),),
        (addressed.rows, rates, norm, sums, withheld, factors, count, float(max_norm)),
        {"PER_GROUP": rates is not None and rates.numel() > 1, "ADVANCE": advance, "LANES": _LANES},
        warps=4,
    )
    return factors


def _step(
    addressed: Table, factors: Tensor, withheld: Tensor | None, partial: Tensor | None, *, moments: bool, weights: bool
) -> None:
    """One launch for each part, which is one for a model of one dtype."""
    for part in addressed.parts:
        types, alignments = _types(part)
        bits = 8 * _there(part.weight).itemsize
        tile = TABLES.find("step", architecture(factors.device), bits=bits)
        constants: dict[str, Any] = {
            "TYPES": types,
            "ALIGNMENTS": alignments,
            "MOMENTS": moments,
            "WEIGHTS": weights,
            "COPIES": part.copy is not None,
            "BLOCK": tile["block"],
        }
        arguments = (addressed.rows, addressed.chunks, factors, withheld, partial, part.first)
        launch(step_kernel, (part.chunks,), arguments, constants, warps=tile["warps"])


def _types(part: Part) -> tuple[tuple[Any, ...], tuple[int, int]]:
    """TYPES and ALIGNMENTS of `step_kernel`; for a tensor that there is not, the weight's type."""
    weight = _there(part.weight)
    dtypes = [dtype or weight for dtype in (weight, part.gradient, part.moment, part.copy)]
    return tuple(_TYPES[dtype] for dtype in dtypes), (16, min(16, 16 // weight.itemsize * dtypes[3].itemsize))


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
    norm: Tensor | None,
    max_norm: float,
    withheld: Tensor | None,
) -> None:
    if not weights:
        return
    addressed = table(Columns(weights, gradients, means, squares, steps, copies), sizes, settings)
    if is_placing():
        return
    if addressed is None:
        columns = (weights, gradients, means, squares, steps, copies)
        reference.adamw_step(*columns, sizes, settings, rates, norm, max_norm, withheld)
        return
    device = weights[0].device
    factors = _factors(addressed, device, withheld, rates=rates, norm=norm, max_norm=max_norm, advance=True)
    _step(addressed, factors, withheld, None, moments=True, weights=True)


def lamb_moments(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    sizes: Sequence[int],
    settings: Sequence[float],
    norm: Tensor | None,
    max_norm: float,
    withheld: Tensor | None,
) -> Tensor:
    addressed = table(Columns(weights, gradients, means, squares, steps), sizes, settings) if weights else None
    if is_placing():
        return weights[0].new_empty(len(weights), 2, dtype=torch.float32) if weights else torch.zeros(0, 2)
    if addressed is None:
        columns = (weights, gradients, means, squares, steps)
        return reference.lamb_moments(*columns, sizes, settings, norm, max_norm, withheld)
    device = weights[0].device
    factors = _factors(addressed, device, withheld, norm=norm, max_norm=max_norm, advance=True)
    partial = torch.empty(addressed.chunks.shape[0], 2, dtype=torch.float32, device=device)
    _step(addressed, factors, withheld, partial, moments=True, weights=False)
    sums = torch.empty(addressed.parameters, 2, dtype=torch.float32, device=device)
    launch(sums_kernel, (addressed.parameters,), (addressed.rows, partial, withheld, sums), {"BLOCK": _LANES}, warps=1)
    return sums


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
    withheld: Tensor | None,
) -> None:
    if not weights:
        return
    columns = Columns(weights, means=means, squares=squares, steps=steps, copies=copies)
    addressed = table(columns, sizes, settings)
    if is_placing():
        return
    if addressed is None:
        reference.lamb_step(weights, means, squares, steps, copies, sizes, settings, rates, sums, withheld)
        return
    factors = _factors(addressed, weights[0].device, withheld, rates=rates, sums=sums.contiguous())
    _step(addressed, factors, withheld, None, moments=False, weights=True)
