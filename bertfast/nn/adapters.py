"""Low-rank adapters beside products (LoRA: Hu et al., 2021): y = x W^T + s dropout(x) A^T B^T.

What an adapter adds goes into the product's own result, by one product of [T, r] and [r, N] that scales and adds as well. Eager
writes it to memory of its own, scales that and adds it: three more passes over [T, N] for each adapter. Adapters that read the same
rows are multiplied with them together. Dropout draws 16 bits an element, four from one call of the generator, where torch draws a
float in as much time as a third of the product takes; a byte an element is kept of it for backward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import _library
from bertfast.nn.linear import ordinary
from bertfast.ops.rng import numbers_rows


class LowRank(NamedTuple):
    """One adapter of a product of K inputs and N outputs.

    Attributes:
        down: A, [r, K].
        up: B, [N, r], of A's dtype.
        scale: s.
        rate: what is dropped of x now, in [0, 1).
    """

    down: Tensor
    up: Tensor
    scale: float
    rate: float = 0.0


class _Plan(NamedTuple):
    """Of adapters that read the same rows.

    Attributes:
        columns: where the product of each begins among the joined ones.
        scales: of each, and the factor by which dropout raises what it keeps.
        rate: what they drop.
        dtype: of their products.
    """

    columns: tuple[int, ...]
    scales: tuple[float, ...]
    rate: float
    dtype: torch.dtype

    def kept(self, x: Tensor) -> Tensor | None:
        """Which elements of x [T, K] are not dropped, bool; None for all."""
        threshold, _ = numbers_rows(self.rate)
        if threshold == 0:
            return None
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        return (draws.view(torch.int16)[: x.numel()] >= threshold - 2**15).view(x.shape)

    def rows(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x [T, K] with zeros for what is dropped."""
        x = x.to(self.dtype)
        return x if keep is None else x * keep.to(self.dtype)

    def pieces(self, inner: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> list[Any]:
        """Each adapter's columns of the joined products, its scale, B, and its part of inner [sum of r, T]."""
        columns = [slice(column, column + up.shape[0]) for column, up in zip(self.columns, ups, strict=True)]
        cast = [up.to(self.dtype) for up in ups]
        parts = inner.split([down.shape[0] for down in downs])
        return list(zip(columns, self.scales, cast, parts, strict=True))


class _Added(torch.autograd.Function):
    # Rows inside are [r, T], not [T, r]: each product is then one that MKL does well, and parts lie in one piece.
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        downs, ups = _halves(tensors)
        keep = plan.kept(x)
        inner = torch.mm(_joined(downs, plan.dtype), plan.rows(x, keep).t())
        for columns, scale, up, part in plan.pieces(inner, downs, ups):
            if y.dtype == plan.dtype:
                y[:, columns].addmm_(part.t(), up.t(), alpha=scale)
            else:
                y[:, columns].add_(torch.mm(part.t(), up.t()), alpha=scale)
        ctx.plan = plan
        ctx.save_for_backward(x, keep, inner, *tensors)
        return y

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, keep, inner, *tensors = ctx.saved_tensors
        plan: _Plan = ctx.plan
        downs, ups = _halves(tensors)
        needs_dy, needs_dx, _, *needed = ctx.needs_input_grad
        need_down, need_up = _halves(needed)
        rows = dy.to(plan.dtype)
        pieces = plan.pieces(inner, downs, ups)
        dups = [
            torch.mm(part, rows[:, columns]).mul_(scale).t().to(up.dtype).contiguous() if need else None
            for (columns, scale, _, part), up, need in zip(pieces, ups, need_up, strict=True)
        ]
        ddowns, dx = [None] * len(downs), None
        if needs_dx or any(need_down):
            dinner = torch.cat([torch.mm(up.t(), rows[:, columns].t()).mul_(scale) for columns, scale, up, _ in pieces])
            if any(need_down):
                joined = torch.mm(dinner, plan.rows(x, keep)).split([down.shape[0] for down in downs])
                ddowns = [d.to(a.dtype) if need else None for d, a, need in zip(joined, downs, need_down, strict=True)]
            if needs_dx:
                dx = plan.rows(torch.mm(dinner.t(), _joined(downs, plan.dtype)), keep).to(x.dtype)
        return dy if needs_dy else None, dx, None, *ddowns, *dups


def _halves(both: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return both[: len(both) // 2], both[len(both) // 2 :]


def _joined(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([down.to(dtype) for down in downs]) if len(downs) > 1 else downs[0].to(dtype)


def added(y: Tensor, x: Tensor, beside: Sequence[Sequence[LowRank]], widths: Sequence[int]) -> Tensor:
    """The joined result of Linears on x with what adapters beside them add; y is written to where that can be.

    Args:
        y: [T, sum of widths], fresh from the products: nobody else has it.
        x: [T, K] of y's dtype.
        beside: the adapters of each Linear.
        widths: the outputs of each Linear.

    Returns:
        [T, sum of widths] in y's dtype. Under autocast adapters are multiplied in x's dtype, elsewhere in their own.
    """
    placed, column = [], 0
    for adapters, width in zip(beside, widths, strict=True):
        placed += [(column, low) for low in adapters]
        column += width
    if not ordinary([y, x, *(tensor for _, low in placed for tensor in (low.down, low.up))]):
        return _composed(y, x, beside, widths)
    autocast = torch.is_autocast_enabled(x.device.type)
    together: dict[Any, list[tuple[int, LowRank]]] = {}
    for number, (column, low) in enumerate(placed):
        dtype = x.dtype if autocast else low.down.dtype
        # What drops rows of its own goes alone.
        together.setdefault((dtype, number if low.rate > 0.0 else None), []).append((column, low))
    for (dtype, _), those in together.items():
        rate = those[0][1].rate
        factor = numbers_rows(rate)[1]
        plan = _Plan(tuple(c for c, _ in those), tuple(low.scale * factor for _, low in those), rate, dtype)
        y = _Added.apply(y, x, plan, *(low.down for _, low in those), *(low.up for _, low in those))
    return y


def _composed(y: Tensor, x: Tensor, beside: Sequence[Sequence[LowRank]], widths: Sequence[int]) -> Tensor:
    """`added` of torch's functions: for compilers, and on a GPU."""
    parts = list(y.split(list(widths), 1))
    for number, adapters in enumerate(beside):
        for low in adapters:
            rows = F.dropout(x.to(low.down.dtype), low.rate, training=low.rate > 0.0)
            parts[number] = parts[number] + F.linear(F.linear(rows, low.down), low.up) * low.scale
    return torch.cat([part.to(y.dtype) for part in parts], 1)
