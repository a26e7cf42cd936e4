"""What one benchmark case of a GPU op is: its arguments, the bytes and FLOPs it must move, its peers, and what its code must show.

The same cases are compiled ahead of time on meta tensors (`python -m benchmarks.gpu.kernels`), so a launch-table entry that no
case reaches is neither compiled nor measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bertfast.triton.tables import ARCHITECTURES

Arguments = tuple[Any, ...]


class Ceilings(NamedTuple):
    """What a device was seen to do."""

    copy: float  # bytes a second of a device-to-device copy, counted both ways
    matrix: float  # FLOP a second of an 8192 cubed bfloat16 product
    matrix_float32: float  # and of one in float32 without TF32, which the parity budget does not allow

    def floor(self, case: "Case") -> float:
        """Seconds below which a case cannot be: the larger of its bytes and its FLOPs over the rate of its dtype."""
        matrix = self.matrix_float32 if case.dtype == torch.float32 else self.matrix
        return max(case.bytes / self.copy, case.flops / matrix)


# Measured on an H200 before this project had kernels, but for float32: NVIDIA's figure for its cores, 67 TFLOP/s.
H200 = Ceilings(4.3e12, 790e12, 67e12)
COPY = 4251e9  # bytes a second of a copy, measured on the H200 that ran these kernels: what predictions are made of


@dataclass(frozen=True)
class Case:
    """One op at one shape and dtype.

    Attributes:
        op: name in `bertfast::`; its CUDA owner is what runs.
        shape: short text, such as "8x128x12x64 p0.1".
        make: arguments of the op on a device ("meta" for compilation); random, never zeros.
        bytes, flops: the least the op must move (each input read once, each output written once) and multiply-add, counted x2.
        peers: name to a function that takes the arguments and gives a thunk doing the same work another way.
        dot: whether the architecture's own tensor-core instructions must be in the code; "any": those of older ones will do,
            as for tiles of fewer than 64 rows.
        kernels: whether anything of ours is launched; False where cuBLAS does it all.
        tma: whether bulk tensor copies must be, on architectures from 90.
        wide: the least share of the bytes of global accesses that moves in accesses of 16.
        spills: (kernel, architecture) to the reason why it may spill there.
        run: what to time in place of the owner, for alternatives that own nothing yet.
        architectures: those that its kernels are written for, of the ones that kernels are compiled for.
        predicted_us: microseconds that were expected on an H200 before it was ever timed there; `reason`: what they are made of.
    """

    op: str
    shape: str
    dtype: torch.dtype
    make: Callable[[torch.device], Arguments]
    bytes: int
    flops: int = 0
    peers: dict[str, Callable[[Arguments], Callable[[], Any]]] = field(default_factory=dict)
    dot: bool | str = False
    kernels: bool = True
    tma: bool = False
    wide: float = 0.5
    spills: dict[tuple[str, int], str] = field(default_factory=dict)
    run: Callable[..., Any] | None = None
    architectures: tuple[int, ...] = ARCHITECTURES
    predicted_us: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {str(self.dtype).removeprefix('torch.')}"

    @property
    def predicted_seconds(self) -> float:
        """The floor on an H200: the larger of bytes over copy bandwidth and FLOPs over the matrix rate."""
        return H200.floor(self)


def randn(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.float32).to(dtype)


def state(device: torch.device) -> torch.Tensor:
    """A dropout state, int64 [2]."""
    return torch.tensor([1234, 5678], dtype=torch.int64, device=device)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for this case's shapes alone.

    Without the reset, shapes of earlier cases would turn sizes dynamic, and after a few of them functions run eagerly, unsaid.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def stock_peers(stock: Callable[..., Any], build: Callable[..., Any]) -> dict[str, Callable[[Arguments], Any]]:
    """A stock function eagerly and by torch.compile; `build` takes the function and the case's arguments and gives the thunk."""
    return {
        "eager": lambda arguments: build(stock, arguments),
        "compile": lambda arguments: build(compiled(stock), arguments),
    }
