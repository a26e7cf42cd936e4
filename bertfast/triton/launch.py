"""One way to launch a Triton kernel: on a GPU with the compiled kernel cached here, in the interpreter, or only recorded.

Triton's own launcher binds and specialises every argument on every call, 10 to 20 us of Python. `launch` builds a short key
of what Triton would specialise on and calls the compiled kernel itself; only the first call of a variant goes through Triton.
Recording is how kernels are compiled ahead of time without a GPU: launchers run on meta tensors and what they would have
launched, constants and warps included, is collected instead. A Triton whose private calling convention is not known launches
through its own `kernel[grid](...)` every time.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from bertfast import _torch
from bertfast.triton import private, repeats

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS_DIRECTLY = private.runs_directly()
# Products are joined with sums into one rounding, said aloud: it was Triton's default up to 3.9 and is not from 3.10 on.
FP_FUSION = True
H200_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Launch:
    """One recorded launch: everything that decides what Triton compiles, and the grid."""

    kernel: Any
    grid: tuple[int, ...]
    signature: tuple[tuple[str, str], ...]  # run-time argument to Triton type, such as "*bf16", "i32", "fp32"
    divisible_by_16: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int

    @property
    def is_gluon(self) -> bool:
        return private.is_gluon(self.kernel)


@dataclass
class Recorder:
    arch: int
    launches: list[Launch]


Blocks = Mapping[int, tuple[int, int]]  # number of an argument to the block that its tensor descriptor copies at once

_recorder: Recorder | None = None
_NO_BLOCKS: Blocks = {}
# What runs a Gluon kernel, which Triton's interpreter does not know, where there is no GPU: tests put their own here.
gluon_interpreter: Callable[[Any, tuple[int, ...], tuple, dict[str, Any]], None] | None = None
_compiled: dict[tuple, Any] = {}
_architectures: dict[int, int] = {}
_multiprocessors: dict[int, int] = {}
_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN = frozenset((int, float, bool, type(None)))
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}


@contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Collect launches instead of making them. Launchers are called with meta tensors and see `arch`, such as 90.

    Not for several threads: it is what tests and the table of kernels use.
    """
    global _recorder
    before, _recorder = _recorder, Recorder(arch, [])
    try:
        yield _recorder.launches
    finally:
        _recorder = before


def architecture(device: torch.device) -> int:
    """Compute capability as one number, such as 80, 90 or 100; 90 in the interpreter."""
    if _recorder is not None:
        return _recorder.arch
    if INTERPRETED:
        return 90
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _architectures:
        major, minor = torch.cuda.get_device_capability(index)
        _architectures[index] = 10 * major + minor
    return _architectures[index]


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has; an H200's while recording, 4 in the interpreter."""
    if _recorder is not None:
        return H200_MULTIPROCESSORS
    if INTERPRETED:
        return 4
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _multiprocessors:
        _multiprocessors[index] = torch.cuda.get_device_properties(index).multi_processor_count
    return _multiprocessors[index]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own wraps its arguments for use in kernels: microseconds a call on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    # Device-made tensor descriptors live here; the caching allocator aligns to 512 bytes.
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _traits(values: tuple) -> list[Any]:
    """What Triton specialises on: dtype and alignment of pointers, width, divisibility and 1 of integers.

    Types are compared first: isinstance of a Tensor goes through torch's metaclass, and this is on the way of every launch.
    """
    traits: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TENSORS or (kind not in _PLAIN and isinstance(value, Tensor)):
            traits.append(value.dtype if value.data_ptr() & 15 == 0 else (value.dtype,))
        elif isinstance(value, int):
            traits.append((value == 1, value & 15 == 0, -(2**31) <= value < 2**31))
        else:
            traits.append(kind)
    return traits


def _described(args: Sequence[Any], blocks: Blocks) -> Sequence[Any]:
    """`args` with a tensor descriptor in place of each matrix that a kernel reads or writes by bulk tensor copies."""
    if not blocks:
        return args
    made = list(args)
    for place, block in blocks.items():
        if made[place] is not None:
            made[place] = private.descriptor(rows_of(made[place]), block)
    return made


def rows_of(matrix: Tensor) -> Tensor:
    """A matrix as its memory has it: itself where its rows are contiguous, its transpose where its columns are."""
    return matrix if matrix.stride(1) == 1 else matrix.t()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple,
    constants: dict[str, Any],
    *,
    warps: int = 4,
    stages: int = 2,
    blocks: Blocks = _NO_BLOCKS,
) -> None:
    """Run `kernel` on the current stream of its first tensor's device.

    Args:
        kernel: a `@triton.jit` function whose parameters are `args` in order, then the constexprs named by `constants` in order.
        grid: one to three numbers of programs; nothing is launched where one is 0.
        args: tensors, ints, floats and None (taken as a constexpr, as Triton does).
        constants: constexprs, in the order of the kernel's parameters.
        warps, stages: num_warps and num_stages.
        blocks: which of `args`, matrices that begin on 16 bytes and whose rows (`rows_of`) do, are given to a Gluon kernel as
            tensor descriptors, and the rows and columns of the block that each copies.
    """
    compiled = None
    if 0 in grid:
        pass
    elif _recorder is not None:
        _recorder.launches.append(_record(kernel, grid, args, constants, warps, stages, blocks))
    elif INTERPRETED and private.is_gluon(kernel):
        if gluon_interpreter is None:
            raise RuntimeError(f"{kernel.__name__} is a Gluon kernel, which Triton's interpreter cannot run")
        gluon_interpreter(kernel, grid, tuple(_described(args, blocks)), constants)
    elif INTERPRETED:
        kernel[grid](*args, **constants)
    else:
        current = torch.cuda.current_device()
        device = args[0].device.index
        if device is None:  # host memory that kernels may reach, such as a mailbox
            device = _device_index(args, current)
        if device == current:
            compiled = _launch(kernel, grid, args, constants, warps, stages, blocks, device)
        else:
            with torch.cuda.device(device):
                _launch(kernel, grid, args, constants, warps, stages, blocks, device)
    if repeats.noted:
        repeats.note(args, _again(kernel, grid, constants, warps, stages, blocks, compiled))


def _again(
    kernel: Any,
    grid: tuple[int, ...],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    blocks: Blocks,
    compiled: Any,
) -> Callable[[Sequence[Any]], None]:
    """What launches the same on other arguments of the same traits: `compiled`, where it is there, on the stream of now."""
    if compiled is None or private.scratch_bytes(compiled):
        return lambda args: launch(kernel, grid, tuple(args), constants, warps=warps, stages=stages, blocks=blocks)
    values = tuple(constants.values())
    run = private.bound(compiled, _three(grid), _torch.current_stream(torch.cuda.current_device()))
    if blocks:
        return lambda args: run(*_described(args, blocks), *values)
    return lambda args: run(*args, *values)


def _device_index(args: tuple, current: int) -> int:
    """The device of the first tensor in device memory; the current one where all of them lie in host memory."""
    indices = (a.device.index for a in args if isinstance(a, Tensor))
    return next((index for index in indices if index is not None), current)


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple,
    constants: dict[str, Any],
    warps: int,
    stages: int,
    blocks: Blocks,
    device: int,
) -> Any:
    """Run `kernel` on the current stream of `device`, which is the current one.

    Returns:
        The compiled kernel, or None where it may not be called directly.
    """
    values = tuple(constants.values())
    key = (id(kernel), device, warps, stages, values, *blocks.items(), *_traits(args))
    compiled = _compiled.get(key)
    given = _described(args, blocks)
    if compiled is None:
        triton.set_allocator(_scratch)
        first = kernel[grid](*given, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=FP_FUSION)
        if not RUNS_DIRECTLY:
            return None
        _compiled[key] = first
        return first
    if private.scratch_bytes(compiled):
        triton.set_allocator(_scratch)  # a context variable: backward runs on a thread that has not set it
    private.run(compiled, _three(grid), _torch.current_stream(device), (*given, *values))
    return compiled


def _three(grid: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


def _record(kernel: Any, grid: tuple, args: tuple, constants: dict, warps: int, stages: int, blocks: Blocks) -> Launch:
    names, unspecialised = private.parameter_names(kernel), private.unspecialised(kernel)
    signature, divisible, values = [], [], []
    for place, (name, value) in enumerate(zip(names, args, strict=False)):
        if value is None:
            values.append((name, None))
        elif place in blocks:
            signature.append((name, private.descriptor_type(_TYPES[value.dtype], value.dtype, blocks[place])))
        elif isinstance(value, Tensor):
            signature.append((name, "*" + _TYPES[value.dtype]))
        elif isinstance(value, int):
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0 and name not in unspecialised:
                divisible.append(name)
        else:
            signature.append((name, "fp32"))
    values += constants.items()
    return Launch(kernel, tuple(grid), tuple(signature), tuple(divisible), tuple(values), warps, stages)
