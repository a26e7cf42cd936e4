"""Optimizer steps of BERT-base and BERT-large: float32 weights with the copies that autocast's products read, and bfloat16 alone.

Predicted on an H200, at 4.25 TB/s: of large in float32 the norm 316 us (1.34 GB), AdamW 2.36 ms (10.02 GB); LAMB 1.90 and 1.41 ms.
In bfloat16 half of that less the copies: 158 us and 1.11 ms, 1.27 ms of a step together, where clipping and torch's fused AdamW
take 2.5. Of base: 104 us and 0.77 ms, in bfloat16 52 us and 0.36 ms.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.case import Arguments, Case, randn

_SETTINGS = [0.9, 0.999, 1e-6, 0.01, 0.9, 0.999, 1e-6, 0.0]
_SIZES = {"base": (12, 768, 3072), "large": (24, 1024, 4096)}
_WORDS, _POSITIONS = 30522, 512
F32, BF16 = torch.float32, torch.bfloat16
Shape = tuple[int, ...]


def _shapes(name: str) -> tuple[list[Shape], list[Shape], int]:
    """Shapes of what decays and of what does not, and how many of the former, at their end, have copies under autocast."""
    layers, e, f = _SIZES[name]
    tables: list[Shape] = [(_WORDS, e), (_POSITIONS, e), (2, e), (e, e), (e, e), (2, e)]  # embeddings, pooler, heads
    matrices: list[Shape] = [(e, e)] * 4 + [(f, e), (e, f)]
    vectors: list[Shape] = [(e,)] * 8 + [(f,), (e,)]
    still: list[Shape] = [(e,)] * 6 + [(2,), (_WORDS,)]
    return tables + matrices * layers, still + vectors * layers, len(matrices) * layers


def _lists(name: str, device: torch.device, dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
    """weights, gradients, means, squares, steps, copies."""
    decaying, still, copied = _shapes(name)
    shapes = decaying + still
    weights, gradients, means = ([randn(device, dtype, *shape) for shape in shapes] for _ in range(3))
    squares = [randn(device, dtype, *shape).abs() for shape in shapes]
    steps = [torch.full((), 7.0, device=device) for _ in shapes]
    absent = torch.empty(0, device=device)
    first = len(decaying) - copied
    copies = [
        torch.empty(shape, dtype=BF16, device=device) if dtype == F32 and first <= number < len(decaying) else absent
        for number, shape in enumerate(shapes)
    ]
    return weights, gradients, means, squares, steps, copies


def _count(shapes: list[Shape]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _groups(name: str) -> list[int]:
    decaying, still, _ = _shapes(name)
    return [len(decaying), len(still)]


def _flag(device: torch.device, value: float) -> torch.Tensor:
    return torch.full((), value, device=device)


def _torch_adamw(arguments: Arguments) -> Callable[[], Any]:
    """Clipping, torch's fused AdamW and the copies: what one pass replaces, but for the norm, which it is given."""
    weights, gradients, _, _, _, copies, sizes, settings, rate, norm, max_norm, _ = arguments
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    groups = [
        {"params": parameters[: sizes[0]], "weight_decay": settings[3]},
        {"params": parameters[sizes[0] :], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(settings[0], settings[1]), eps=settings[2], fused=True)
    pairs = [(copy, weight) for copy, weight in zip(copies, weights, strict=True) if copy.numel()]

    def step() -> None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
        for copy, weight in pairs:
            copy.copy_(weight)

    return step


def _cases(name: str, dtype: torch.dtype) -> list[Case]:
    decaying, still, copied = _shapes(name)
    numbers, size = _count(decaying) + _count(still), dtype.itemsize
    copy_bytes = 2 * _count(decaying[len(decaying) - copied :]) if dtype == F32 else 0
    groups = _groups(name)

    def norm(device: torch.device) -> Arguments:
        return (_lists(name, device, dtype)[1],)

    def adamw(device: torch.device) -> Arguments:
        rest = (groups, _SETTINGS, _flag(device, 1e-4), _flag(device, 2.0), 1.0, _flag(device, 0.0))
        return (*_lists(name, device, dtype), *rest)

    def moments(device: torch.device) -> Arguments:
        rest = (groups, _SETTINGS, _flag(device, 2.0), 1.0, _flag(device, 0.0))
        return (*_lists(name, device, dtype)[:5], *rest)

    def lamb(device: torch.device) -> Arguments:
        weights, _, *others = _lists(name, device, dtype)
        sums = randn(device, F32, len(weights), 2).abs()
        return (weights, *others, groups, _SETTINGS, _flag(device, 1e-4), sums, _flag(device, 0.0))

    def torch_norm(arguments: Arguments) -> Callable[[], Any]:
        return lambda: torch.nn.utils.get_total_norm(arguments[0])

    # Beside the wide loop there is one for the ends of parameters, and scalars: half of the accesses, few of the bytes.
    return [
        Case("gradient_norm", name, dtype, norm, bytes=numbers * size, peers={"torch": torch_norm}, wide=0.35),
        Case(
            "adamw_step",
            name,
            dtype,
            adamw,
            bytes=7 * numbers * size + copy_bytes,
            peers={"torch": _torch_adamw},
            wide=0.4,
        ),
        Case("lamb_moments", name, dtype, moments, bytes=6 * numbers * size, wide=0.35),
        Case("lamb_step", name, dtype, lamb, bytes=4 * numbers * size + copy_bytes, wide=0.35),
    ]


CASES = [case for name in _SIZES for dtype in (F32, BF16) for case in _cases(name, dtype)]
