"""Runs the source of a Gluon kernel on a CPU, under an order of events that a seed decides, and finds what hardware would punish.

    gluon_interpreter.run(kernel, grid, args, constants, seed=3)

`kernel` is a `@gluon.jit` function; `args` are tensors, tensor descriptors, numbers and None in the order of its parameters, and
`constants` its constexprs by name. It raises `Fault` or leaves the kernel's results in the tensors. Tests of launchers need none of
this: with the fixture `triton_ops` or `candidate_ops` and no GPU, `launch.launch` runs Gluon kernels here, each launch with another
seed (`interpret`), and BERTFAST_GLUON_SEED=n repeats a failure, which names its seed.

How: the kernel's functions run as Python functions, from the very code objects, with `gl`, `mbarrier`, `tma`, `warpgroup_mma` and
so on replaced (`source`, `language`, `tensors`). Each partition of `warp_specialize` is a thread, of which one runs at a time; at
every barrier, copy, fence, load and store another may be chosen, and TMA copies and wgmmas go on, at random speeds that change
(`scheduler`, `asynchronous`). Programs run beside one another, `resident` at a time. Shared memory begins as NaN, a TMA load
poisons its destination when it is asked for and brings its bytes late, in pieces; a wgmma reads its operands at some moment before
the wait that retires it.

What it proves: that indexing, masks, rounding, epilogues and what lies outside of a descriptor are right for the sizes that were
run; and that in those runs every access to shared memory is ordered after all that it depends on by barriers, waits and fences,
not by luck: `memory` follows what each partition knows of the others' work, so a missing wait is found in an order of events
in which it did no harm. `faults.Fault` lists what is found.

Of global memory it says whether a program reads or writes what another one wrote, or what a TMA store wrote (`global_memory`).

What it cannot show: layouts, of which only shapes are checked, so bank conflicts, a conversion that is not trivial, a slice that
swizzling forbids; registers and spills; speed; the order inside a partition, whose threads are taken for one (Triton puts barriers
between their accesses); the order of global memory inside a program, or of programs that use atomics; the narrow sums of FP8 wgmmas
and the last bits of approximate instructions; what the compiler makes of the source, which has to compile besides (types that
change in a branch or a loop, an accumulator that is no tensor yet).

`mutants` plants faults in a kernel, to see that its runs here would show them.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .asynchronous import Descriptor
from .faults import Fault
from .scheduler import Machine
from .source import Translation
from .values import Int, Pointer, Value

__all__ = ["Fault", "interpret", "run"]

_seeds = itertools.count()


def run(
    kernel: Any,
    grid: Sequence[int],
    args: Sequence[Any],
    constants: dict[str, Any],
    *,
    seed: int = 0,
    resident: int = 2,
    warps: int = 4,
) -> None:
    """Run all programs of a launch.

    Args:
        kernel, grid, args, constants: as `bertfast.triton.launch.launch` takes them, descriptors in place of matrices.
        seed: decides the order of events.
        resident: how many programs run at a time; those of a grid that wait for one another need all.
        warps: of the first partition.

    Raises:
        Fault: names what is wrong, where, and who was involved.
        NotImplementedError: for a builtin or inline assembly that is not emulated.
    """
    function = Translation().function(kernel)
    given = tuple(_given(value) for value in args)
    Machine(seed, grid, resident).run(lambda: function(*given, **constants), warps)


def interpret(kernel: Any, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
    """`run` as `launch.gluon_interpreter`, with a seed of its own for each launch of the process."""
    named = os.environ.get("BERTFAST_GLUON_SEED")
    seed = next(_seeds) if named is None else int(named)
    try:
        run(kernel, grid, args, constants, seed=seed, resident=1 + seed % 3)
    except Exception as problem:
        problem.add_note(f"{kernel.__name__}, grid {grid}, {constants}: again with BERTFAST_GLUON_SEED={seed}")
        raise


def _given(value: Any) -> Any:
    """An argument as the kernel sees it."""
    if isinstance(value, Tensor):
        return Pointer.of(value)
    if isinstance(value, tuple | list):
        return tuple(_given(each) for each in value)
    if isinstance(value, bool):
        return Int(value, 1)
    if isinstance(value, int):
        return Int(value, 32 if -(2**31) <= value < 2**31 else 64)
    if isinstance(value, float):
        return Value(torch.tensor(value, dtype=torch.float32))
    return Descriptor(value) if hasattr(value, "block_shape") else value
