"""Runs the very source of a Gluon kernel on a CPU, under schedules drawn by a seed. Gluon has no interpreter of its own.

    run(kernel, grid, args, constants, seed=0)

`args` are torch tensors, tensor descriptors, numbers and None, `constants` the constexprs. Tensors are written in place. A kernel's
functions run as Python over emulated `gl`, `mbarrier`, `tma` and `warpgroup_mma`, each partition of `warp_specialize` as a thread of
its own (`gluon_machine`). So one run checks indexing, masks, tails and maths, and the order of waits and arrivals under one schedule;
many seeds make it a model of the barriers. A `Fault` is a deadlock, a read of what is not there yet, a write to what somebody may
still read, a missing fence or wait, or a wrong number of bytes or arrivals.

It knows nothing of layouts (only shapes are compared), registers, speed, or of how memory orders what barriers do not. 16-bit and
8-bit types round where a GPU rounds; sums are float32, in another order than a tensor core's.
"""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gluon_machine import Barrier, Fault, Job, Machine, Shared, poison
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.language import core as triton_core
from triton.runtime.jit import JITFunction

_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int1": torch.bool,
}
_ASM = {
    "rcp.approx": lambda x: 1.0 / x,
    "ex2.approx": torch.exp2,
    "lg2.approx": torch.log2,
    "rsqrt.approx": torch.rsqrt,
    "tanh.approx": torch.tanh,
}


def _plain(value: Any) -> Any:
    """A Python or torch value of what a kernel wrote: constexprs are their values, Gluon's dtypes torch's."""
    if isinstance(value, gl.constexpr):
        return _plain(value.value)
    if isinstance(value, triton_core.dtype):
        return _DTYPES[value.name]
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if not hasattr(value, "_fields") else value
    return value


def _tensor(value: Any) -> Tensor:
    value = _plain(value)
    if isinstance(value, Value):
        return value.settled()
    return torch.as_tensor(value, dtype=torch.float32 if isinstance(value, float) else None)


def _is_small(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1 and dtype.is_floating_point


class Value:
    """A tensor in registers. `job`: the wgmma that is still to write it; it is not to be read before that is waited for."""

    def __init__(self, tensor: Tensor | None, shape: Sequence[int] | None = None, job: Job | None = None) -> None:
        self.tensor, self._shape, self.job = tensor, shape, job

    @property
    def shape(self) -> list[int]:
        return list(self._shape if self.tensor is None else self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tensor is None else self.tensor.dtype

    def settled(self) -> Tensor:
        if self.job is not None or self.tensor is None:
            raise Fault("an accumulator is read before warpgroup_mma_wait says that its wgmma is over")
        return self.tensor

    def to(self, dtype: Any, **_: Any) -> "Value":
        tensor, dtype = self.settled(), _plain(dtype)
        return Value(tensor.float().to(dtype) if _is_small(tensor.dtype) else tensor.to(dtype))

    def __getitem__(self, place: Any) -> "Value":
        return Value(self.settled()[place])

    def __bool__(self) -> bool:
        return bool(self.settled())

    def __int__(self) -> int:
        return int(self.settled())

    __index__ = __int__


def _arithmetic(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def method(self: Value, other: Any) -> Value:
        return Value(function(self.settled(), _like(other, self)))

    return method


def _reflected(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def method(self: Value, other: Any) -> Value:
        return Value(function(_like(other, self), self.settled()))

    return method


def _like(other: Any, value: Value) -> Any:
    """The other side of an operation; numbers take the tensor's dtype, as they do in a kernel."""
    other = _plain(other)
    if isinstance(other, Value):
        return other.settled()
    return torch.as_tensor(other, dtype=value.dtype if value.dtype.is_floating_point else None)


def _truncated(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


for _name, _function in {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "truediv": torch.true_divide, "floordiv": _truncated,
    "mod": torch.fmod, "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "lshift": torch.bitwise_left_shift, "rshift": torch.bitwise_right_shift,
}.items():  # fmt: skip
    setattr(Value, f"__{_name}__", _arithmetic(_function))
    setattr(Value, f"__r{_name}__", _reflected(_function))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _arithmetic(getattr(torch, _name)))
Value.__neg__ = lambda self: Value(-self.settled())  # type: ignore[attr-defined]
Value.__invert__ = lambda self: Value(~self.settled())  # type: ignore[attr-defined]
Value.__hash__ = object.__hash__  # type: ignore[method-assign]


class Pointer:
    """Addresses in one tensor: element numbers."""

    def __init__(self, base: Tensor, offset: Tensor) -> None:
        self.base, self.offset = base, offset

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.base.dtype)

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.base, self.offset + _tensor(other).to(torch.int64))

    __radd__ = __add__

    def where(self, mask: Any, what: str) -> tuple[Tensor, Tensor]:
        """Numbers of the elements, and which of them are meant."""
        meant = torch.ones_like(self.offset, dtype=torch.bool) if mask is None else _tensor(mask)
        offset, meant = torch.broadcast_tensors(self.offset, meant)
        bad = meant & ((offset < 0) | (offset >= self.base.numel()))
        if bool(bad.any()):
            raise Fault(f"{what} of element {int(offset[bad].flatten()[0])} of a tensor of {self.base.numel()}")
        return torch.where(meant, offset, 0), meant


class _Language:
    """`gluon.language`, for one run."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._allocated = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(gl, name)
        if isinstance(real, triton_core.dtype):
            return _plain(real)
        if isinstance(real, type) or name in ("constexpr",):
            return real  # layouts and the like: built, and not looked at
        raise NotImplementedError(f"gl.{name} is not emulated: add it to gluon_interpreter")

    # Programs and loops
    def program_id(self, axis: int) -> int:
        return self._machine.now.program[axis]

    def num_programs(self, axis: int) -> int:
        return self._machine.now.grid[axis]

    static_range = staticmethod(range)
    cdiv = staticmethod(lambda a, b: -(-int(a) // int(b)))

    @staticmethod
    def static_assert(condition: Any, message: str = "") -> None:
        assert condition, message

    def warp_specialize(self, functions: Any, warps: Any = None, registers: Any = None, **_: Any) -> None:
        here = self._machine.now
        own, *others = functions
        names = [getattr(function, "__name__", "partition") for function, _ in functions]
        started = [
            self._machine.start(f"{name} {number} of program {here.program[0]}", here.program, here.grid, _call(*other))
            for number, (name, other) in enumerate(zip(names[1:], others, strict=True), 1)
        ]
        here.name = f"{names[0]} 0 of program {here.program[0]}"
        _call(*own)()
        self._machine.switch(lambda: all(other.over for other in started), "waits for the other partitions")

    # Making tensors
    def full(self, shape: Any, value: Any, dtype: Any, layout: Any = None) -> Value:
        return Value(torch.full(tuple(_plain(shape)), _tensor(value).item(), dtype=_plain(dtype)))

    def zeros(self, shape: Any, dtype: Any, layout: Any = None) -> Value:
        return self.full(shape, 0, dtype)

    def arange(self, start: int, end: int, layout: Any = None) -> Value:
        return Value(torch.arange(start, end, dtype=torch.int32))

    def to_tensor(self, value: Any) -> Value:
        return value if isinstance(value, Value) else Value(_tensor(value))

    # Shapes
    expand_dims = staticmethod(lambda x, axis: Value(x.settled().unsqueeze(axis)))
    permute = staticmethod(lambda x, order: Value(x.settled().permute(tuple(order)).contiguous()))
    trans = staticmethod(lambda x: Value(x.settled().t().contiguous()))

    @staticmethod
    def reshape(x: Value, shape: Any, *_: Any) -> Value:
        return Value(x.settled().contiguous().view(tuple(_plain(shape))))

    @staticmethod
    def split(x: Value) -> tuple[Value, Value]:
        tensor = x.settled()
        assert tensor.shape[-1] == 2, f"split of {tuple(tensor.shape)}"
        return Value(tensor[..., 0]), Value(tensor[..., 1])

    join = staticmethod(lambda a, b: Value(torch.stack((a.settled(), b.settled()), -1)))
    broadcast_to = staticmethod(lambda x, shape, *_: Value(x.settled().broadcast_to(tuple(shape))))
    convert_layout = staticmethod(lambda x, layout, assert_trivial=False: Value(x.settled()))

    # Arithmetic
    @staticmethod
    def where(condition: Any, a: Any, b: Any) -> Value:
        return Value(torch.where(_tensor(condition), _tensor(a), _tensor(b)))

    @staticmethod
    def minimum(a: Any, b: Any, **_: Any) -> Any:
        a, b = _plain(a), _plain(b)
        return min(a, b) if not isinstance(a, Value) and not isinstance(b, Value) else Value(torch.minimum(*_both(a, b)))

    @staticmethod
    def maximum(a: Any, b: Any, **_: Any) -> Any:
        a, b = _plain(a), _plain(b)
        return max(a, b) if not isinstance(a, Value) and not isinstance(b, Value) else Value(torch.maximum(*_both(a, b)))

    @staticmethod
    def fma(a: Any, b: Any, c: Any) -> Value:
        return Value(_tensor(a) * _tensor(b) + _tensor(c))

    @staticmethod
    def inline_asm_elementwise(asm: Any, constraints: Any, args: Any, dtype: Any, is_pure: Any, pack: Any) -> Value:
        for name, function in _ASM.items():
            if name in str(_plain(asm)):
                return Value(function(*map(_tensor, args)).to(_plain(dtype)))
        raise NotImplementedError(f"this assembly is not emulated: add it to gluon_interpreter: {_plain(asm)}")

    abs = staticmethod(lambda x: Value(x.settled().abs()))
    exp = staticmethod(lambda x: Value(torch.exp(x.settled())))
    exp2 = staticmethod(lambda x: Value(torch.exp2(x.settled())))
    erf = staticmethod(lambda x: Value(torch.erf(x.settled())))
    rsqrt = staticmethod(lambda x: Value(torch.rsqrt(x.settled())))
    sqrt = staticmethod(lambda x: Value(torch.sqrt(x.settled())))
    sum = staticmethod(lambda x, axis=None: Value(x.settled().sum() if axis is None else x.settled().sum(axis)))
    max = staticmethod(lambda x, axis=None: Value(x.settled().amax(() if axis is None else axis)))

    # Global memory
    @staticmethod
    def load(pointer: Pointer, mask: Any = None, other: Any = None, **_: Any) -> Value:
        place, meant = pointer.where(mask, "load")
        values = pointer.base.view(-1)[place]
        if mask is None:
            return Value(values)
        rest = torch.full_like(values, _tensor(other).item()) if other is not None else torch.empty_like(values)
        if other is None:
            poison(rest)
        return Value(torch.where(meant, values, rest))

    @staticmethod
    def store(pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> None:
        place, meant = pointer.where(mask, "store")
        values = _tensor(value)
        values = (values.float() if _is_small(values.dtype) else values).to(pointer.base.dtype).broadcast_to(place.shape)
        if _is_small(values.dtype):
            pointer.base.view(-1).view(torch.uint8)[place[meant]] = values.view(torch.uint8)[meant]
        else:
            pointer.base.view(-1)[place[meant]] = values[meant]

    def atomic_add(self, pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> Value:
        return self._atomic(pointer, mask, lambda old: old + _tensor(value).to(old.dtype))

    def atomic_max(self, pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> Value:
        return self._atomic(pointer, mask, lambda old: torch.maximum(old, _tensor(value).to(old.dtype)))

    def _atomic(self, pointer: Pointer, mask: Any, change: Callable[[Tensor], Tensor]) -> Value:
        self._machine.switch()
        place, meant = pointer.where(mask, "atomic")
        flat = pointer.base.view(-1)
        assert place[meant].unique().numel() == place[meant].numel(), "one element twice in an atomic is not emulated"
        old = flat[place]
        flat[place[meant]] = change(old)[meant]
        return Value(old)

    # Shared memory
    def allocate_shared_memory(self, dtype: Any, shape: Any, layout: Any = None, value: Any = None) -> Any:
        self._allocated += 1
        name, shape, dtype = f"buffer {self._allocated}", _plain(shape), _plain(dtype)
        if isinstance(layout, hopper.mbarrier.MBarrierLayout):
            return _Barriers(name, [None] * math.prod(shape))
        memory = _Memory.of(self._machine, dtype, shape, name)
        if value is not None:
            memory.store(value)
        return memory

    def fence_async_shared(self, **_: Any) -> None:
        machine = self._machine
        for memory in machine_memories(machine):
            memory.dirty[memory.dirty == machine.now.number] = -1


def machine_memories(machine: Machine) -> list[Shared]:
    return machine.__dict__.setdefault("memories", [])


def _both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    like = a if isinstance(a, Value) else b
    return torch.broadcast_tensors(_like(a, like), _like(b, like))


class _Memory(Shared):
    """Shared memory with the loads and stores of a kernel."""

    @classmethod
    def of(cls, machine: Machine, dtype: torch.dtype, shape: Sequence[int], name: str) -> "_Memory":
        memory = super().of(machine, dtype, shape, name)
        machine_memories(machine).append(memory)
        return memory  # type: ignore[return-value]

    def _view(self, change: Callable[[Tensor], Tensor]) -> "_Memory":
        views = (change(each) for each in (self.data, self.flight, self.readers, self.dirty))
        return _Memory(self.machine, *views, self.name)

    def load(self, layout: Any = None) -> Value:
        self.check_read(self.machine.now.name, by_engine=False)
        return Value(self.data.clone())

    def store(self, value: Value) -> None:
        tensor = value.settled()
        if list(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise Fault(f"a {tensor.dtype} {tuple(tensor.shape)} is stored to {self.name}, {self.dtype} {self.shape}")
        self.check_write(self.machine.now.name)
        self.data.copy_(tensor)
        self.dirty.fill_(self.machine.now.number)


class _Barriers:
    """Barriers in shared memory; each exists once it was initialised."""

    def __init__(self, name: str, barriers: list[Barrier | None], place: int | None = None) -> None:
        self.name, self._barriers, self._place = name, barriers, place

    def index(self, number: int) -> "_Barriers":
        if not 0 <= int(number) < len(self._barriers):
            raise Fault(f"{self.name}.index({int(number)}) of {len(self._barriers)} barriers")
        return _Barriers(self.name, self._barriers, int(number))

    def init(self, count: int) -> None:
        place = self._place or 0
        self._barriers[place] = Barrier(f"barrier {place} of {self.name}", int(count))

    @property
    def barrier(self) -> Barrier:
        barrier = self._barriers[self._place or 0]
        if barrier is None or not barrier.valid:
            raise Fault(f"barrier {self._place or 0} of {self.name} is used without mbarrier.init")
        return barrier


def _met(pred: Any) -> bool:
    return bool(_plain(pred)) if not isinstance(pred, Value) else bool(pred)


class _Mbarrier:
    """`hopper.mbarrier`."""

    MBarrierLayout = hopper.mbarrier.MBarrierLayout

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def init(self, barrier: _Barriers, count: int) -> None:
        barrier.init(count)

    def invalidate(self, barrier: _Barriers) -> None:
        barrier.barrier.valid = False

    def expect(self, barrier: _Barriers, bytes: int, pred: Any = True) -> None:
        if _met(pred):
            barrier.barrier.announce(int(bytes))
            barrier.barrier.arrive(1)
            self._machine.switch()

    def arrive(self, barrier: _Barriers, *, count: int = 1, pred: Any = True) -> None:
        if _met(pred):
            barrier.barrier.arrive(int(count))
            self._machine.switch()

    def wait(self, barrier: _Barriers, phase: Any, pred: Any = True, deps: Any = ()) -> None:
        if not _met(pred):
            return
        real, parity = barrier.barrier, int(_plain(phase))
        if parity not in (0, 1):
            raise Fault(f"{real.name} is waited on for phase {parity}: phases are 0 and 1")
        self._machine.switch(lambda: real.is_over(parity), f"waits for phase {parity} of {real.name}")


class _Tma:
    """`hopper.tma`: bulk tensor copies."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _block(self, descriptor: Any, corner: Any, memory: Shared) -> tuple[slice, slice, slice, slice]:
        """Rows and columns of the matrix, and of the block, that both have."""
        block = list(descriptor.block_shape)
        if memory.shape != block or memory.dtype != descriptor.base.dtype:
            raise Fault(f"a block {block} of {descriptor.base.dtype} is copied to or from {memory.name} {memory.shape}")
        ranges = []
        for first, size, whole in zip(map(int, corner), block, descriptor.shape, strict=True):
            begin, end = max(first, 0), max(min(first + size, whole), max(first, 0))
            ranges.append((slice(begin, end), slice(begin - first, end - first)))
        (rows, block_rows), (cols, block_cols) = ranges
        return rows, cols, block_rows, block_cols

    def async_copy_global_to_shared(
        self, descriptor: Any, corner: Any, barrier: _Barriers, memory: Shared, pred: Any = True, **_: Any
    ) -> None:
        if not _met(pred):
            return
        rows, cols, block_rows, block_cols = self._block(descriptor, corner, memory)
        who, real = self._machine.now.name, barrier.barrier
        memory.check_write(f"a bulk copy of {who}")
        poison(memory.data)
        memory.dirty.fill_(-1)
        memory.flight.add_(1)
        matrix = _matrix(descriptor)
        brought = torch.zeros_like(memory.data)
        brought[block_rows, block_cols] = matrix[rows, cols]

        def piece(part: Tensor) -> Callable[[], None]:
            def write() -> None:
                memory.data[part] = brought[part]
                memory.flight[part] -= 1
                real.arrived(len(part) * memory.data[0].numel() * memory.dtype.itemsize)

            return write

        order = torch.randperm(memory.shape[0], generator=_generator(self._machine))
        pieces = [piece(part) for part in order.tensor_split(min(3, memory.shape[0]))]
        self._machine.issue(Job(f"a bulk copy of {who}", pieces))
        self._machine.switch()

    def async_copy_shared_to_global(self, descriptor: Any, corner: Any, memory: Shared) -> None:
        rows, cols, block_rows, block_cols = self._block(descriptor, corner, memory)
        who = self._machine.now.name
        memory.check_read(f"a bulk store of {who}", by_engine=True)
        memory.readers.add_(1)
        matrix = _matrix(descriptor)

        def write() -> None:
            matrix[rows, cols] = memory.data[block_rows, block_cols]

        def retire() -> None:
            memory.readers.sub_(1)

        job = Job(f"a bulk store of {who}", [write], retire=retire)
        self._machine.now.stores.append(self._machine.issue(job))
        self._machine.switch()

    def store_wait(self, pendings: Any) -> None:
        self._machine.retire(self._machine.now.stores, int(_plain(pendings)), "waits for its bulk stores")


def _matrix(descriptor: Any) -> Tensor:
    return descriptor.base.as_strided(tuple(descriptor.shape), tuple(descriptor.strides), descriptor.base.storage_offset())


def _generator(machine: Machine) -> torch.Generator:
    return torch.Generator().manual_seed(machine.draw.randrange(2**31))


def _operand(operand: Any, who: str) -> Callable[[], Tensor]:
    """What reads an operand of a wgmma when that runs."""
    if isinstance(operand, Shared):
        operand.check_read(f"a wgmma of {who}", by_engine=True)
        operand.readers.add_(1)
        return lambda: operand.data.float()
    tensor = operand.settled().float()
    return lambda: tensor


class _Wgmma:
    """`warpgroup_mma` and its wait."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def mma(
        self, a: Any, b: Any, acc: Value, *, use_acc: Any = True, is_async: Any = False, **_: Any
    ) -> Value:
        partition = self._machine.now
        m, k = a.shape
        if b.shape[0] != k or acc.shape != [m, b.shape[1]]:
            raise Fault(f"wgmma of {a.shape} and {b.shape} into {acc.shape}")
        if m % 64 or (isinstance(b, Value)):
            raise Fault(f"wgmma takes 64 rows for each warpgroup, and its second operand from shared memory; got {a.shape}")
        left, right = _operand(a, partition.name), _operand(b, partition.name)
        keeps = _met(use_acc)
        before = acc
        if acc.job is None and acc.tensor is not None:
            kept = acc.tensor
        else:
            kept = None
        result = Value(None, [m, b.shape[1]])

        def multiply() -> None:
            start = (kept if kept is not None else before.tensor) if keeps else 0.0
            result.tensor = left() @ right() + start

        def retire() -> None:
            for operand in (a, b):
                if isinstance(operand, Shared):
                    operand.readers.sub_(1)
            result.job = None

        job = Job(f"a wgmma of {partition.name}", [multiply], after=partition.wgmmas[-1] if partition.wgmmas else None)
        job.retire = retire
        result.job = job
        partition.wgmmas.append(self._machine.issue(job))
        self._machine.switch()
        if not is_async:
            self.wait(0)
        return result

    def wait(self, num_outstanding: Any = 0, deps: Any = None) -> Any:
        self._machine.retire(self._machine.now.wgmmas, int(_plain(num_outstanding)), "waits for its wgmmas")
        if deps is None:
            return None
        return deps[0] if len(deps) == 1 else tuple(deps)


def _call(function: Any, args: Any) -> Callable[[], None]:
    return lambda: function(*args)


class _Translation:
    """The kernel's functions over the emulation: each JIT function found among a function's names, translated once."""

    def __init__(self, machine: Machine) -> None:
        language, wgmma = _Language(machine), _Wgmma(machine)
        self._emulated = {
            id(gl): language,
            id(hopper): types.SimpleNamespace(),
            id(hopper.mbarrier): _Mbarrier(machine),
            id(hopper.tma): _Tma(machine),
            id(hopper.fence_async_shared): language.fence_async_shared,
            id(hopper.warpgroup_mma): wgmma.mma,
            id(hopper.warpgroup_mma_wait): wgmma.wait,
        }
        self._functions: dict[int, Any] = {}

    def function(self, jitted: Any) -> Any:
        if id(jitted) not in self._functions:
            names: dict[str, Any] = {}
            python = jitted.fn
            translated = types.FunctionType(python.__code__, names, python.__name__, python.__defaults__, python.__closure__)
            translated.__kwdefaults__ = python.__kwdefaults__
            self._functions[id(jitted)] = translated
            names.update({name: self._name(value) for name, value in python.__globals__.items()})
        return self._functions[id(jitted)]

    def _name(self, value: Any) -> Any:
        if isinstance(value, JITFunction):
            return self.function(value)
        return self._emulated.get(id(value), _plain(value) if isinstance(value, gl.constexpr) else value)


def run(kernel: Any, grid: Sequence[int], args: Sequence[Any], constants: dict[str, Any], *, seed: int = 0) -> None:
    """Run a kernel with all its programs under the schedule of `seed`; its tensors are written in place.

    Raises:
        Fault: see above.
    """
    whole = (*grid, 1, 1)[:3]
    given = [Pointer(a, torch.zeros((), dtype=torch.int64)) if isinstance(a, Tensor) else a for a in args]
    machine = Machine(seed)
    for z in range(whole[2]):
        for y in range(whole[1]):
            for x in range(whole[0]):
                # Shared memory and names are a program's own; barriers and the schedule are the machine's.
                function = _Translation(machine).function(kernel)
                machine.start(f"program {x}", (x, y, z), whole, lambda f=function: f(*given, **constants))
    machine.run()
