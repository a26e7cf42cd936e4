"""GELU's and the norms' passes with the FP8 cast in them, beside what they replace: the pass in 16 bits, then a cast of its result.

That is peer "pass, cast": the op's owner of today and `fp8_cast`, a read and two writes more. Predicted for 16,384 tokens on an
H200, in us, by bytes, and for gelu by the instructions counted in the code for sm_90 (26 an element forward: 44 us of 51):

    gelu 3072, forward 55 and backward 80, where the passes of today take 77 and 136 (52 and 87 with the cheap erf) and the cast 66;
    norm 768, forward 32 and backward 50, where the passes take 22 and 51 and the cast 19; 1024: 43 and 66.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.case import Arguments, Case, randn
from benchmarks.gpu.cases import rows
from bertfast import _library

BF16 = torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ARCHITECTURES = (90, 100)  # sm_80 has no FP8
Peer = Callable[[Arguments], Callable[[], Any]]


def scaling(device: torch.device, dtype: torch.dtype, transposed: bool) -> Arguments:
    return torch.full((), 0.01, device=device), torch.zeros((), device=device), dtype, transposed


def then_cast(op: str, result: int | None = None) -> dict[str, Peer]:
    """The owner of the pass in 16 bits, then the cast; result: which of the pass's is cast, None where it is the only one."""

    def peer(args: Arguments) -> Callable[[], Any]:
        plain, tail = args[:-4], args[-4:]
        owner, cast = _library.owner(op, "CUDA"), _library.owner("fp8_cast", "CUDA")

        def run() -> Any:
            results = owner(*plain)
            return cast(results if result is None else results[result], *tail)

        return run

    return {"pass, cast": peer}


def rows_then_cast(op: str, result: int | None = None) -> dict[str, Peer]:
    def peer(args: Arguments) -> Callable[[], Any]:
        owner, cast = _library.owner(op, "CUDA"), _library.owner("fp8_cast_rows", "CUDA")

        def run() -> Any:
            results = owner(*args[:-1])
            return cast(results if result is None else results[result], args[-1])

        return run

    return {"pass, cast": peer}


def gelu(t: int, n: int, dtype: torch.dtype = BF16, transposed: bool = True, tanh: bool = False) -> list[Case]:
    cell, written = t * n * dtype.itemsize, t * n * (1 + transposed)
    shape = f"{t}x{n}" + " tanh" * tanh + " alone" * (not transposed)

    def forward(device: torch.device) -> Arguments:
        return randn(device, dtype, t, n), randn(device, dtype, n), tanh, *scaling(device, E4M3, transposed)

    def backward(device: torch.device) -> Arguments:
        return randn(device, dtype, t, n), *forward(device)[:-2], E5M2, transposed

    common: dict[str, Any] = {"dtype": dtype, "architectures": ARCHITECTURES, "wide": 0.4}
    return [
        Case("fp8_gelu_fwd", shape, make=forward, bytes=cell + written, peers=then_cast("bias_gelu_fwd"), **common),
        Case(
            "fp8_gelu_bwd",
            shape,
            make=backward,
            bytes=2 * cell + written,
            peers=then_cast("bias_gelu_bwd", 0),
            **common,
        ),
    ]


def gelu_rows(t: int, n: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return randn(device, BF16, t, n), randn(device, BF16, n), False, E4M3

    moved = t * n * (BF16.itemsize + 1) + 4 * t
    return Case(
        "fp8_gelu_rows",
        f"{t}x{n}",
        BF16,
        make,
        moved,
        peers=rows_then_cast("bias_gelu_fwd"),
        architectures=ARCHITECTURES,
        wide=0.4,
    )


def norm(t: int, e: int, p: float, residual: torch.dtype | None = None, transposed: bool = True) -> list[Case]:
    """As the cases of dropout_add_norm, whose arguments they take."""
    plain = {case.op: case for case in rows.cases(t, e, BF16, p, residual)}
    written = t * e * (1 + transposed)

    def case(op: str, owner: str, dtype: torch.dtype, moved: int, result: int) -> Case:
        before = plain[owner]
        return Case(
            op,
            before.shape + " alone" * (not transposed),
            BF16,
            lambda device: (*before.make(device), *scaling(device, dtype, transposed)),
            moved,
            peers=then_cast(owner, result),
            architectures=ARCHITECTURES,
            wide=0.3,
        )

    forward, backward = plain["dropout_add_norm_fwd"].bytes, plain["dropout_add_norm_bwd"].bytes
    return [
        case("fp8_norm_fwd", "dropout_add_norm_fwd", E4M3, forward + written, 0),
        case("fp8_norm_bwd", "dropout_add_norm_bwd", E5M2, backward - t * e * BF16.itemsize + written, 0),
    ]


def norm_rows(t: int, e: int) -> Case:
    before = rows.cases(t, e, BF16, 0.0)[0]
    return Case(
        "fp8_norm_rows",
        before.shape,
        BF16,
        lambda device: (*before.make(device), E4M3),
        before.bytes + t * e + 4 * t,
        peers=rows_then_cast("dropout_add_norm_fwd", 0),
        architectures=ARCHITECTURES,
        wide=0.4,
    )


CASES: list[Case] = [
    *[case for t, n in ((16384, 3072), (16384, 4096), (8192, 3072), (128, 3072)) for case in gelu(t, n)],
    *gelu(1000, 3072),  # a number of rows that no word of the transposed copy fits
    *gelu(16384, 3072, torch.float32),
    *gelu(16384, 3072, tanh=True),
    *gelu(16384, 3072, transposed=False),
    *[gelu_rows(t, n) for t, n in ((16384, 3072), (16384, 4096), (128, 3072), (16384, 1536))],
    *[case for e in (768, 1024) for case in norm(16384, e, 0.1)],
    *norm(16384, 768, 0.0),
    *norm(16384, 768, 0.1, torch.float32),
    *norm(16384, 768, 0.1, transposed=False),
    *norm(1000, 768, 0.1),
    *[case for e in (128, 384, 2048, 4096) for case in norm(8192, e, 0.1)],
    *[norm_rows(t, e) for t, e in ((16384, 768), (16384, 1024), (128, 768))],
]
