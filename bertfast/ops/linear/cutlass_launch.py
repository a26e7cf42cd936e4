"""What the products of csrc/cuda take, and how they are called."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bertfast import _cuda, _torch
from bertfast.triton import launch, repeats

DEVICE = "cuda"
ARCH = 90  # wgmma is of this architecture alone
ALIGNMENT = 16  # bytes, of memory and of rows, that TMA asks for
BLOCK_M, BLOCK_N = 64, 256  # a warpgroup's tile
# With tiles for a smaller share of the multiprocessors torch's library splits K. Predicted, never measured.
LEAST_FILLED = 0.5
LARGEST = 2**31 - 1  # sizes are 32 bits wide


def takes(*matrices: Tensor) -> bool:
    """Whether the library is here and multiplies these: bfloat16 on one sm_90, as they lie in rows, all whole and aligned."""
    device = matrices[0].device
    return (
        device.type == DEVICE
        and all(x.dtype is torch.bfloat16 and x.device == device and is_aligned(x) for x in matrices)
        and _cuda.absence() is None
        and launch.architecture(device) == ARCH
    )


def is_aligned(x: Tensor) -> bool:
    """Whether TMA copies the matrix x as it lies in rows: all of its memory, and rows that begin on 16 bytes."""
    return (
        x.is_contiguous()
        and x.numel() > 0
        and max(x.shape) <= LARGEST
        and x.shape[-1] * x.element_size() % ALIGNMENT == 0
        and x.data_ptr() % ALIGNMENT == 0
    )


def fills(rows: int, columns: int, device: torch.device) -> bool:
    """Whether a result [rows, columns] has tiles for enough of the multiprocessors."""
    tiles = launch.cdiv(rows, BLOCK_M) * launch.cdiv(columns, BLOCK_N)
    return tiles >= LEAST_FILLED * launch.multiprocessors(device)


def run(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...], workspace: Tensor | None = None) -> None:
    """Launch a function of csrc/cuda/products.h on the current stream of its tensors' device.

    Args:
        name: without `bertfast_`.
        tensors: on one GPU, in the order of its pointers.
        sizes: what follows them.

    Raises:
        RuntimeError: where it refuses the shapes, or the launch fails.
    """
    call = _bound(name, tensors[0].device, len(tensors), sizes, workspace)
    call(tensors)
    if repeats.noted:
        repeats.note(tensors, call)


def _bound(
    name: str, device: torch.device, count: int, sizes: tuple[int, ...], workspace: Tensor | None
) -> Callable[[Sequence[Tensor]], None]:
    """What launches it on tensors; a workspace serves launches on one stream, one after another."""
    function, index = _cuda.function(name, count, len(sizes)), device.index
    processors = launch.multiprocessors(device)

    def call(tensors: Sequence[Tensor]) -> None:
        stream, scratch = _torch.current_stream(index), None if workspace is None else workspace.data_ptr()
        settings = ctypes.byref(_cuda.Launch(index, processors, stream, scratch))
        pointers = [tensor.data_ptr() for tensor in tensors]
        if torch.cuda.current_device() == index:
            reason = function(settings, *pointers, *sizes)
        else:
            with torch.cuda.device(index):
                reason = function(settings, *pointers, *sizes)
        if reason:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise RuntimeError(f"{name} (CUTLASS): {reason.decode()}; tensors {shapes}")

    return call


def check(name: str, rows: tuple[int, int], columns: tuple[int, int], depth: tuple[int, int]) -> None:
    """Demand that sizes which two tensors give are the same, since the library only sees their memory.

    Raises:
        ValueError: where two are not.
    """
    for size, (one, other) in {"rows": rows, "columns": columns, "depth": depth}.items():
        if one != other:
            raise ValueError(f"{name}: the product's {size} are {one} by one tensor and {other} by another")
