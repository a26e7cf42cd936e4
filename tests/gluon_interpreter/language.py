"""What Gluon's builtin functions do here: of programs, partitions, shared memory, barriers and asynchronous work."""

import functools
import linecache
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from . import asynchronous, memory, scheduler, tensors
from .faults import Fault
from .memory import Barrier, Shared
from .values import Int, Value, as_tensor, cast, promoted, scalar_or_value


def integer_range(*bounds: Any) -> Any:
    """`range`, of runtime integers."""
    bits = max((b.bits for b in bounds if isinstance(b, Int)), default=32)
    return (Int(i, max(bits, 32)) for i in range(*(operator.index(b) for b in bounds)))


def _named(text: str) -> Callable[[], str]:
    return lambda: text


# Programs and partitions


def program_id(axis: int) -> Int:
    return Int(scheduler.current().program.place[axis])


def num_programs(axis: int) -> Int:
    return Int(scheduler.current().machine.grid[axis])


def num_warps() -> int:
    return scheduler.current().warps


def warp_specialize(partitions: Sequence, worker_warps: Sequence[int], worker_registers: Sequence[int]) -> Any:
    task = scheduler.current()
    if not len(partitions) - 1 == len(worker_warps) == len(worker_registers):
        raise Fault("shape", "warp_specialize takes warps and registers of each partition but the first")
    (function, arguments), *others = partitions
    workers = [
        task.machine.spawn(
            f"{other.__name__} {number} of program {task.program.name}",
            task.program,
            task,
            int(warps),
            functools.partial(other, *given),
        )
        for number, ((other, given), warps) in enumerate(zip(others, worker_warps, strict=True), 1)
    ]
    task.released()
    task.name, name = f"{function.__name__} 0 of program {task.program.name}", task.name
    result = function(*arguments)
    task.machine.block(task, lambda: all(worker.done for worker in workers), _named("the other partitions"))
    for worker in workers:
        memory.join(task.clock, worker.clock)
        memory.join(task.fenced, worker.fenced)
    task.name = name
    return result


# Shared memory, barriers, asynchronous work


def allocate_shared_memory(element_ty: Any, shape: Sequence[int], layout: Any, value: Any = None) -> Shared:
    frame = sys._getframe(1)
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    name = line.split("=")[0].strip() if "=" in line else "memory"
    made = Shared.allocate(name, element_ty, shape)
    if value is not None:
        made.store(value)
    return made


def init(mbarrier: Shared, count: int) -> None:
    task = scheduler.current()
    if mbarrier.shape != (1,) or mbarrier.dtype != gl.int64:
        raise Fault("shape", f"a barrier is int64 [1], not {mbarrier.dtype} {list(mbarrier.shape)}")
    if mbarrier.offset in mbarrier.allocation.barriers:
        raise Fault("barrier", f"{mbarrier.name} is initialised twice")
    mbarrier.allocation.barriers[mbarrier.offset] = Barrier(
        mbarrier.name, operator.index(count), task, task.clock[task]
    )


def invalidate(mbarrier: Shared) -> None:
    mbarrier.barrier()
    del mbarrier.allocation.barriers[mbarrier.offset]


def expect(mbarrier: Shared, bytes: Any, pred: Any = True) -> None:
    task = scheduler.step()
    if pred:
        barrier = mbarrier.barrier()
        barrier.expected += operator.index(bytes)
        barrier.arrive(1, task.clock, task.fenced)
        task.released()


def arrive(mbarrier: Shared, *, count: Any = 1, pred: Any = True) -> None:
    task = scheduler.step()
    if pred:
        mbarrier.barrier().arrive(operator.index(count), task.clock, task.fenced)
        task.released()


def wait(mbarrier: Shared, phase: Any, pred: Any = True, deps: Any = ()) -> None:
    task = scheduler.step()
    if not pred:
        return
    barrier, parity = mbarrier.barrier(), operator.index(phase)
    if parity not in (0, 1):
        raise Fault("barrier", f"wait for {barrier.name} with {parity}, which is no parity")
    place = scheduler.place()
    task.machine.block(
        task, lambda: barrier.passed(parity), lambda: f"parity {parity} of {barrier.state()}, at {place}"
    )
    memory.join(task.clock, barrier.released)
    memory.join(task.fenced, barrier.released_fenced)


def fence_async_shared(cluster: bool = False) -> None:
    asynchronous.fence(scheduler.step())


def async_copy_global_to_shared(
    tensor_desc: Any, coord: Any, barrier: Shared, result: Shared, pred: Any = True
) -> None:
    task = scheduler.step()
    if pred:
        asynchronous.Load(task, tensor_desc, coord, barrier.barrier(), result)


def async_copy_shared_to_global(tensor_desc: Any, coord: Any, src: Shared) -> None:
    asynchronous.Store(scheduler.step(), tensor_desc, coord, src)


def store_wait(pendings: int) -> None:
    asynchronous.wait_for_stores(scheduler.step(), operator.index(pendings))


def warpgroup_mma(
    a: Any, b: Shared, acc: Value, *, use_acc: Any = True, precision: Any = None, max_num_imprecise_acc: Any = None,
    is_async: bool = False,
) -> Value:  # fmt: skip
    task = scheduler.step()
    product = asynchronous.Product(task, a, b, acc, bool(use_acc))
    if is_async:
        return Value(None, product, is_token=True)
    asynchronous.wait_for_products(task, 0)
    return Value(product.result)


def warpgroup_mma_wait(num_outstanding: int = 0, deps: Sequence | None = None) -> Any:
    if deps is None:
        raise ValueError("warpgroup_mma_wait deps must be given")
    asynchronous.wait_for_products(scheduler.step(), operator.index(num_outstanding))
    waited = [Value(v._data, v.product) if isinstance(v, Value) else v for v in deps]
    return waited[0] if len(waited) == 1 else tuple(waited)


# By module and name; a builtin that is not here is an error where a kernel asks for it.
FUNCTIONS: dict[Any, dict[str, Any]] = {
    gl: {
        "constexpr": tensors.same,
        "program_id": program_id,
        "num_programs": num_programs,
        "num_warps": num_warps,
        "num_ctas": lambda: 1,
        "warp_specialize": warp_specialize,
        "allocate_shared_memory": allocate_shared_memory,
        "load": tensors.load,
        "store": tensors.store,
        "atomic_add": tensors.atomic(torch.add),
        "atomic_max": tensors.atomic(torch.maximum),
        "atomic_min": tensors.atomic(torch.minimum),
        "atomic_or": tensors.atomic(torch.bitwise_or),
        "atomic_and": tensors.atomic(torch.bitwise_and),
        "atomic_xchg": tensors.atomic(lambda before, value: value),
        "atomic_cas": tensors.atomic_cas,
        "full": tensors.full,
        "zeros": tensors.zeros,
        "full_like": tensors.full_like,
        "zeros_like": lambda input, *rest, **named: tensors.full_like(input, 0, *rest, **named),
        "arange": tensors.arange,
        "expand_dims": tensors.expand_dims,
        "reshape": tensors.reshape,
        "permute": tensors.permute,
        "ravel": lambda value: Value(value.data.reshape(-1)),
        "split": tensors.split,
        "join": tensors.join,
        "broadcast": lambda a, b: tuple(Value(x) for x in torch.broadcast_tensors(*promoted(a, b))),
        "convert_layout": tensors.convert_layout,
        "set_auto_layout": tensors.convert_layout,
        "cast": cast,
        "to_tensor": lambda value: scalar_or_value(as_tensor(value)),
        "where": tensors.where,
        "add": tensors.binary(torch.add),
        "sub": tensors.binary(torch.sub),
        "mul": tensors.binary(torch.mul),
        "maximum": tensors.extreme(torch.fmax, torch.maximum),
        "minimum": tensors.extreme(torch.fmin, torch.minimum),
        "fdiv": tensors.binary(torch.div),
        "div_rn": tensors.binary(torch.div),
        "fma": tensors.fma,
        "abs": tensors.unary(torch.abs),
        "exp": tensors.unary(torch.exp),
        "exp2": tensors.unary(torch.exp2),
        "log": tensors.unary(torch.log),
        "log2": tensors.unary(torch.log2),
        "sqrt": tensors.unary(torch.sqrt),
        "sqrt_rn": tensors.unary(torch.sqrt),
        "rsqrt": tensors.unary(torch.rsqrt),
        "sin": tensors.unary(torch.sin),
        "cos": tensors.unary(torch.cos),
        "erf": tensors.unary(torch.erf),
        "floor": tensors.unary(torch.floor),
        "ceil": tensors.unary(torch.ceil),
        "sum": tensors.sum_of,
        "max": tensors.reduction(torch.amax),
        "min": tensors.reduction(torch.amin),
        "reduce": tensors.reduce,
        "inline_asm_elementwise": tensors.inline_asm_elementwise,
        "cdiv": lambda a, b: (a + b - 1) // b,
        "static_range": range,
        "static_assert": tensors.static_assert,
        "static_print": tensors.nothing,
        "device_assert": tensors.device_assert,
        "device_print": tensors.nothing,
        "assume": tensors.nothing,
        "multiple_of": tensors.same,
        "max_constancy": tensors.same,
        "max_contiguous": tensors.same,
        "thread_barrier": tensors.nothing,
    },
    hopper: {
        "fence_async_shared": fence_async_shared,
        "warpgroup_mma": warpgroup_mma,
        "warpgroup_mma_init": tensors.same,
        "warpgroup_mma_wait": warpgroup_mma_wait,
    },
    hopper.mbarrier: {"init": init, "invalidate": invalidate, "expect": expect, "arrive": arrive, "wait": wait},
    hopper.tma: {
        "async_copy_global_to_shared": async_copy_global_to_shared,
        "async_copy_shared_to_global": async_copy_shared_to_global,
        "store_wait": store_wait,
    },
}
