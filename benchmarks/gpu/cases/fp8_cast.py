"""Casts to FP8: what no pass of ours makes (attention's context, its gradient), weights once a step, rows in inference."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.case import Arguments, Case, randn
from bertfast.ops.fp8_cast import reference

BF16, FP32 = torch.bfloat16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ARCHITECTURES = (90, 100)  # sm_80 has no FP8
# What is cast at 16,384 tokens: context and joined gradients of base and large; and the widest, which a prototype was timed at.
SHAPES = ((16384, 768), (16384, 2304), (16384, 1024), (16384, 3072), (16384, 4096))
# Microseconds on an H200. A prototype that stored bytes took 19, 66 and 87 (60 to 72 % of copy bandwidth) with the transposed
# copy, and 13.9, 37.6 and 49.4 by rows; words should bring the former to 85 % of copy bandwidth and 2 us for launch and tail.
WITH_COPY = {(16384, 768): 16.0, (16384, 2304): 43.0, (16384, 1024): 20.0, (16384, 3072): 57.0, (16384, 4096): 76.0}
BY_ROWS = {(16384, 768): 13.9, (16384, 2304): 29.0, (16384, 1024): 16.0, (16384, 3072): 37.6, (16384, 4096): 49.4}
LAYER = {"MiniLM": (384, 1536), "base": (768, 3072), "large": (1024, 4096)}
LAYERS = {"MiniLM": 6, "base": 12, "large": 24}


def scales(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((), 2.0**-6, device=device), torch.zeros((), device=device)


def peers(
    function: Callable[..., Any], written: int | None = None
) -> dict[str, Callable[[Arguments], Callable[[], Any]]]:
    """The reference, as it is and compiled; `written` is the argument that holds the result of an op without one."""

    def of(run: Callable[..., Any]) -> Callable[[Arguments], Callable[[], Any]]:
        def build(args: Arguments) -> Callable[[], Any]:
            return lambda: run(*args) if written is None else (run(*args), args[written])[1]

        return build

    return {"eager": of(function), "compile": lambda args: of(torch.compile(function, dynamic=False))(args)}


def casts(t: int, c: int, dtype: torch.dtype) -> list[Case]:
    def with_transposed(device: torch.device) -> Arguments:
        return randn(device, BF16, t, c), *scales(device), dtype, True

    def rows(device: torch.device) -> Arguments:
        return randn(device, BF16, t, c), dtype

    name = f"{t}x{c} {'e4m3' if dtype == E4M3 else 'e5m2'}"
    moved = t * c * BF16.itemsize
    return [
        Case(
            "fp8_cast", f"{name} transposed", BF16, with_transposed, moved + 2 * t * c, peers=peers(reference.cast), wide=0.3,
            architectures=ARCHITECTURES, predicted_us=WITH_COPY.get((t, c)), reason="85 % of copy bandwidth, and 2 us",
        ),
        Case(
            "fp8_cast_rows", name, BF16, rows, moved + t * c + 4 * t, peers=peers(reference.cast_rows), architectures=ARCHITECTURES,
            predicted_us=BY_ROWS.get((t, c)), reason="as a prototype, of which 768, 3072 and 4096 columns were timed",
        ),
    ]  # fmt: skip


def weights(size: str, dtype: torch.dtype) -> Case:
    """All of a model, with their transposed copies."""
    hidden, feed = LAYER[size]
    shapes = [(3 * hidden, hidden), (hidden, hidden), (feed, hidden), (hidden, feed)] * LAYERS[size]

    def make(device: torch.device) -> Arguments:
        sources = [randn(device, dtype, *shape) for shape in shapes]
        targets = [torch.empty(shape, dtype=E4M3, device=device) for shape in shapes]
        transposed = [torch.empty(shape[::-1], dtype=E4M3, device=device) for shape in shapes]
        return sources, torch.empty(len(shapes), device=device), targets, transposed

    numbers = sum(n * k for n, k in shapes)
    # Read twice, for the largest magnitude and for the cast.
    moved = numbers * (2 * dtype.itemsize + 2)
    predicted = moved / 3.6e12 * 1e6 + 1.5 * len(shapes)
    reason = "85 % of copy bandwidth, and 1.5 us for the start and the tail of a launch for each weight"
    return Case(
        "fp8_cast_weights", size, dtype, make, moved, wide=0.3, architectures=ARCHITECTURES,
        peers={"eager": peers(reference.cast_weights, 1)["eager"]}, predicted_us=predicted, reason=reason,
    )  # fmt: skip


def update(layers: int) -> Case:
    def make(device: torch.device) -> Arguments:
        n = 8 * layers
        return (
            torch.rand(16, n, device=device),
            torch.rand(n, device=device),
            torch.ones(n, device=device),
            torch.full((n,), 448.0, device=device),
            0.0,
        )

    # Too small for wide accesses to matter.
    return Case(
        "fp8_update_scales",
        f"{layers} layers",
        FP32,
        make,
        8 * layers * 4 * 36,
        peers=peers(reference.update_scales, 2),
        wide=0.0,
        predicted_us=4.0,
        reason="one program's latency",
    )


CASES: list[Case] = [
    *[case for t, c in SHAPES for case in casts(t, c, E4M3)],
    *casts(16384, 3072, E5M2),
    *casts(1000, 768, E4M3),  # a number of rows that no word of the transposed copy fits
    *[weights(size, dtype) for size in LAYER for dtype in (BF16, FP32)],
    update(24),
]
