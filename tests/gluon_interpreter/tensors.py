"""Gluon's builtin functions of tensors in registers and of global memory."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from . import inline_asm, scheduler
from .faults import Fault
from .values import (
    Pointer,
    Value,
    as_tensor,
    cast,
    checked_shape,
    kernel_dtype,
    promoted,
    reduce_sum,
    scalar_or_value,
    torch_dtype,
)


def load(pointer: Pointer, mask: Any = None, other: Any = None, **_: Any) -> Any:
    task = scheduler.step()
    places, active = pointer.lanes(mask)
    task.machine.owners.read(task.program, pointer.memory, places if active is None else places[active])
    if active is None:
        return scalar_or_value(pointer.memory[places])
    # What is masked and has no other value is undefined: the memory's own poison would be luck.
    floating = pointer.memory.is_floating_point()
    fill = torch.tensor(float("nan") if floating else -1) if other is None else as_tensor(other)
    if not pointer.memory.numel():
        return scalar_or_value(fill.to(pointer.memory.dtype).expand(places.shape).clone())
    read = pointer.memory[torch.where(active, places, 0)]
    return scalar_or_value(torch.where(active, read, fill.to(read.dtype)))


def store(pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> None:
    task = scheduler.step()
    places, active = pointer.lanes(mask)
    data = as_tensor(cast(value, kernel_dtype(pointer.memory.dtype))).expand(places.shape)
    if active is not None:
        places, data = places[active], data[active]
    task.machine.owners.write(task.program, pointer.memory, places.flatten())
    pointer.memory[places.flatten()] = data.flatten()


def atomic(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    def apply(pointer: Pointer, val: Any, mask: Any = None, **_: Any) -> Any:
        scheduler.step().program.uses_atomics = True
        places, active = pointer.lanes(mask)
        data = as_tensor(cast(val, kernel_dtype(pointer.memory.dtype))).expand(places.shape).flatten()
        before = torch.zeros_like(data)
        lanes = range(data.numel()) if active is None else active.flatten().nonzero().flatten().tolist()
        flat = places.flatten().tolist()
        for lane in lanes:
            before[lane] = pointer.memory[flat[lane]]
            pointer.memory[flat[lane]] = combine(before[lane], data[lane])
        return scalar_or_value(before.view(places.shape))

    return apply


def atomic_cas(pointer: Pointer, cmp: Any, val: Any, **_: Any) -> Any:
    scheduler.step().program.uses_atomics = True
    place = int(pointer.lanes(None)[0])
    before = pointer.memory[place].clone()
    if before == as_tensor(cmp):
        pointer.memory[place] = as_tensor(val)
    return scalar_or_value(before)


# Tensors in registers


def full(shape: Sequence[int], value: Any, dtype: Any, layout: Any = None) -> Value:
    return Value(as_tensor(cast(value, dtype)).expand(checked_shape(shape)).clone())


def zeros(shape: Sequence[int], dtype: Any, layout: Any = None) -> Value:
    return full(shape, 0, dtype)


def full_like(input: Value, value: Any, shape: Any = None, dtype: Any = None, layout: Any = None) -> Value:
    return full(input.shape if shape is None else shape, value, input.dtype if dtype is None else dtype)


def arange(start: int, end: int, layout: Any = None) -> Value:
    checked_shape([end - start])
    return Value(torch.arange(start, end, dtype=torch.int32))


def expand_dims(value: Value, axis: int) -> Value:
    return Value(value.data.unsqueeze(axis))


def reshape(value: Value, *shape: Any, **_: Any) -> Value:
    sizes = checked_shape(shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape)
    if math.prod(sizes) != value.data.numel():
        raise Fault("shape", f"{value.shape} cannot be reshaped to {list(sizes)}")
    return Value(value.data.reshape(sizes))


def permute(value: Value, *order: Any) -> Value:
    return Value(value.data.permute(*order))


def split(value: Value) -> tuple[Value, Value]:
    if value.data.shape[-1] != 2:
        raise Fault("shape", f"split takes a last dimension of 2, not {value.shape}")
    return Value(value.data[..., 0].contiguous()), Value(value.data[..., 1].contiguous())


def join(a: Value, b: Value) -> Value:
    return Value(torch.stack(promoted(a, b), -1))


def broadcast_to(value: Value, shape: Sequence[int]) -> Value:
    return Value(value.data.expand(checked_shape(shape)))


def convert_layout(value: Value, layout: Any, assert_trivial: bool = False) -> Value:
    return Value(value.data)


def where(condition: Any, x: Any, y: Any) -> Any:
    chosen = as_tensor(condition).bool()
    a, b = promoted(x, y)
    return scalar_or_value(torch.where(chosen, a, b))


def unary(function: Callable[[Tensor], Tensor]) -> Callable:
    return lambda value: scalar_or_value(function(as_tensor(value)))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    return lambda a, b, **_: scalar_or_value(function(*promoted(a, b)))


def extreme(function: Callable, propagating: Callable) -> Callable:
    """Without `propagate_nan` the hardware gives the other side of a NaN."""

    def apply(a: Any, b: Any, propagate_nan: Any = None, **_: Any) -> Any:
        x, y = promoted(a, b)
        if not x.is_floating_point():
            return scalar_or_value(propagating(x, y))
        keeps = propagate_nan == gl._core.tl_core.PropagateNan.ALL if propagate_nan is not None else False
        return scalar_or_value(propagating(x, y) if keeps else function(x, y))

    return apply


def fma(a: Any, b: Any, c: Any) -> Any:
    x, y = promoted(a, b)
    return scalar_or_value((x.double() * y.double() + as_tensor(c).double()).to(x.dtype))


def reduction(function: Callable) -> Callable:
    def apply(value: Value, axis: int | None = None, keep_dims: bool = False, **_: Any) -> Any:
        dims = list(range(value.data.dim())) if axis is None else [axis]
        return scalar_or_value(function(value.data, dim=dims, keepdim=keep_dims))

    return apply


def sum_of(value: Value, axis: int | None = None, keep_dims: bool = False, dtype: Any = None) -> Any:
    made = reduce_sum(value if dtype is None else value.to(dtype), axis)
    return expand_dims(made, axis) if keep_dims and axis is not None else made


def reduce(value: Any, axis: int, combine: Callable, keep_dims: bool = False) -> Any:
    """Halves with halves, as the hardware's order is not promised either."""
    several = isinstance(value, tuple)
    values = value if several else (value,)
    while values[0].data.shape[axis] > 1:
        halves = [v.data.chunk(2, axis) for v in values]
        made = combine(*(Value(h[0]) for h in halves), *(Value(h[1]) for h in halves))
        values = made if several else (made,)
    done = tuple(scalar_or_value(v.data if keep_dims else v.data.squeeze(axis)) for v in values)
    return done if several else done[0]


def inline_asm_elementwise(
    asm: str, constraints: str, args: Sequence[Any], dtype: Any, is_pure: bool, pack: int
) -> Any:
    data = torch.broadcast_tensors(*(as_tensor(a) for a in args))
    dtypes = tuple(dtype) if isinstance(dtype, list | tuple) else (dtype,)
    made = tuple(Value(part) for part in inline_asm.evaluate(asm, data, [torch_dtype(d) for d in dtypes]))
    return made if isinstance(dtype, list | tuple) else made[0]


def static_assert(condition: Any, message: str = "") -> None:
    if not condition:
        raise Fault("shape", f"static_assert: {message}")


def device_assert(condition: Any, message: str = "", mask: Any = None) -> None:
    if not as_tensor(condition).all():
        raise Fault("bounds", f"device_assert: {message}")


def same(value: Any, *_: Any, **__: Any) -> Any:
    return value


def nothing(*_: Any, **__: Any) -> None:
    pass
