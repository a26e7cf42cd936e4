"""Products of FP8 matrices by torch's scaled product, beside bfloat16's, at the sizes of base and large."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.case import Arguments, Case

BF16, FP32 = torch.bfloat16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Rows, inner, columns: up, down, joined projections and output of base and large; a weight's gradient of each.
FORWARD = (
    *((16384, 768, 3072), (16384, 3072, 768), (16384, 768, 2304), (16384, 768, 768)),
    *((16384, 1024, 4096), (16384, 4096, 1024), (16384, 1024, 3072), (16384, 1024, 1024)),
)
WEIGHTS = ((3072, 16384, 768), (2304, 16384, 768), (4096, 16384, 1024), (3072, 16384, 1024))
# Microseconds on an H200 that torch's product took in another run, e4m3 with fast accumulation, by a tensor's or by rows' scales.
MEASURED = dict(zip(FORWARD, (71.0, 57.0, 56.0, 22.0, 111.0, 96.0, 85.0, None), strict=True))


def stored(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)


def product(m: int, k: int, n: int, kind: torch.dtype, dtype: torch.dtype, *, by_rows: bool = False) -> Case:
    def make(device: torch.device) -> Arguments:
        a, b = stored(device, kind, m, k), stored(device, E4M3, n, k)
        sizes = ((m, 1), (n, 1)) if by_rows else ((), ())
        scales = [torch.randint(-4, 1, size, device=device).float().exp2() for size in sizes]  # exact in bfloat16
        return a, b, *scales, None, dtype, kind is E4M3

    def bf16(args: Arguments) -> Callable[[], Any]:
        a, b = ((stored.float() * scale).to(BF16) for stored, scale in ((args[0], args[2]), (args[1], args[3])))
        return lambda: torch.mm(a, b.t())

    moved = m * k + n * k + m * n * dtype.itemsize
    shape = f"{m}x{k}x{n} {'e4m3' if kind is E4M3 else 'e5m2'}" + " by rows" * by_rows
    return Case(
        "fp8_linear", shape, dtype, make, moved, 2 * m * n * k, peers={"bfloat16": bf16}, kernels=False,
        predicted_us=MEASURED.get((m, k, n)) if kind is E4M3 else None, reason="as torch's product took in another run",
    )  # fmt: skip


CASES: list[Case] = [
    *[product(*sizes, E4M3, BF16) for sizes in FORWARD],
    *[product(*sizes, E4M3, BF16, by_rows=True) for sizes in FORWARD],
    *[product(*sizes, E5M2, BF16) for sizes in FORWARD],
    *[product(*sizes, E5M2, dtype) for sizes in WEIGHTS for dtype in (BF16, FP32)],
]
