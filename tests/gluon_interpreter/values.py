"""What kernels compute with: scalars, tensors in registers, pointers into global memory. Types follow Triton's promotion."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from .faults import Fault

_TORCH = {
    "int1": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}
_KERNEL = {
    _TORCH[dtype.name]: dtype
    for dtype in (
        *(gl.int1, gl.int8, gl.int16, gl.int32, gl.int64, gl.uint8, gl.uint16, gl.uint32, gl.uint64),
        *(gl.float16, gl.bfloat16, gl.float32, gl.float64, gl.float8e4nv, gl.float8e5),
    )
}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_HALF = (torch.float16, torch.bfloat16)


def torch_dtype(dtype: Any) -> torch.dtype:
    """A dtype of the kernel language as torch's."""
    return _TORCH[dtype.name]


def kernel_dtype(dtype: torch.dtype) -> Any:
    """torch's dtype as one of the kernel language."""
    return _KERNEL[dtype]


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of a tensor in registers, whose sizes are powers of two."""
    sizes = tuple(operator.index(size) for size in shape)
    if any(size < 1 or size & (size - 1) for size in sizes):
        raise Fault("shape", f"sizes of a tensor are powers of two, not {list(sizes)}")
    return sizes


def _truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


class Int(int):
    """A scalar integer of 1, 32 or 64 bits. Leaving its range is a fault; division truncates, as the hardware's does."""

    bits: int

    def __new__(cls, value: int, bits: int = 32) -> "Int":
        if bits > 1 and not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise Fault("overflow", f"{value} is no int{bits}")
        made = super().__new__(cls, value)
        made.bits = bits
        return made

    @property
    def dtype(self) -> Any:
        return {1: gl.int1, 32: gl.int32, 64: gl.int64}[self.bits]

    @property
    def shape(self) -> list[int]:
        return []

    def to(self, dtype: Any, **_: Any) -> Any:
        kind = torch_dtype(dtype)
        if kind in (torch.int32, torch.int64):
            return Int(int(self), 8 * kind.itemsize)
        return Int(self != 0, 1) if kind == torch.bool else Value(torch.tensor(int(self))).to(dtype)

    def __truediv__(self, other: Any) -> Any:
        return Value(torch.tensor(int(self), dtype=torch.int32)) / other

    def __invert__(self) -> "Int":
        return Int(not self, 1) if self.bits == 1 else Int(~int(self), self.bits)

    def __neg__(self) -> "Int":
        return Int(-int(self), max(self.bits, 32))


def _scalar_operators() -> None:
    def arithmetic(function: Callable[[int, int], int], flipped: bool) -> Callable:
        def apply(self: Int, other: Any) -> Any:
            if not isinstance(other, int):
                return NotImplemented
            # A literal takes the other side's width, unless it needs more.
            literal = 1 if isinstance(other, bool) else 32 if -(2**31) <= other < 2**31 else 64
            bits = max(self.bits, other.bits if isinstance(other, Int) else literal)
            pair = (int(other), int(self)) if flipped else (int(self), int(other))
            return Int(function(*pair), bits)

        return apply

    def comparison(function: Callable[[int, int], bool]) -> Callable:
        def apply(self: Int, other: Any) -> Any:
            return Int(function(int(self), int(other)), 1) if isinstance(other, int | float) else NotImplemented

        return apply

    functions: dict[str, Callable] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "floordiv": _truncated,
        "mod": lambda a, b: a - _truncated(a, b) * b,
        "and": operator.and_,
        "or": operator.or_,
        "xor": operator.xor,
        "lshift": operator.lshift,
        "rshift": operator.rshift,
    }
    for name, function in functions.items():
        setattr(Int, f"__{name}__", arithmetic(function, False))
        setattr(Int, f"__r{name}__", arithmetic(function, True))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Int, f"__{name}__", comparison(getattr(operator, name)))
    Int.__hash__ = int.__hash__  # type: ignore[method-assign]


_scalar_operators()


class Value:
    """A tensor in registers, or a scalar that is no integer.

    `product` is the wgmma that still writes it: reading it before the wait that retires the product is a fault. `is_token`: what an
    asynchronous product gave and no wait returned yet.
    """

    def __init__(self, data: Tensor | None, product: Any = None, is_token: bool = False) -> None:
        self._data, self.product, self.is_token = data, product, is_token

    @property
    def data(self) -> Tensor:
        if self.product is not None:
            if self.is_token or not self.product.retired:
                raise Fault("accumulator", f"read before the wait that retires {self.product}")
            self._data, self.product = self.product.result, None
        assert self._data is not None
        return self._data

    @property
    def shape(self) -> list[int]:
        if self.product is not None:
            return self.product.shape
        return list(self.data.shape)

    @property
    def dtype(self) -> Any:
        return kernel_dtype(torch.float32 if self.product is not None else self.data.dtype)

    @property
    def type(self) -> "Value":
        return self

    @property
    def element_ty(self) -> Any:
        return self.dtype

    def to(self, dtype: Any, bitcast: bool = False, **_: Any) -> Any:
        return cast(self, dtype, bitcast)

    def __bool__(self) -> bool:
        if self.data.dim():
            raise Fault("shape", "a tensor is no condition")
        return bool(self.data)

    def __index__(self) -> int:
        return operator.index(self.data)

    def __neg__(self) -> "Value":
        return Value(-self.data)

    def __invert__(self) -> "Value":
        return Value(~self.data)

    def __getitem__(self, places: Any) -> "Value":
        places = places if isinstance(places, tuple) else (places,)
        if any(place is not None and place != slice(None) for place in places):
            raise Fault("shape", f"only None and : index a tensor, not {places}")
        return Value(self.data[places])

    def sum(self, axis: int | None = None) -> Any:
        return reduce_sum(self, axis)


def cast(value: Any, dtype: Any, bitcast: bool = False) -> Any:
    """`value` rounded to nearest even; to 8 bits it is clamped to what is finite, as the hardware's conversions are."""
    kind = torch_dtype(dtype)
    data = as_tensor(value)
    if bitcast:
        return Value(data.view(kind))
    if kind in FP8 and data.is_floating_point():
        largest = torch.finfo(kind).max
        data = data.float().clamp(-largest, largest)  # NaN stays
    return scalar_or_value(data.to(kind))


def scalar_or_value(data: Tensor) -> Any:
    """Integers without a shape are `Int`."""
    if data.dim() == 0 and data.dtype in (torch.bool, torch.int32, torch.int64):
        return Int(int(data), {torch.bool: 1, torch.int32: 32, torch.int64: 64}[data.dtype])
    return Value(data)


def as_tensor(value: Any) -> Tensor:
    """What a value is in torch; Python's numbers are int32, int64 or float32."""
    if isinstance(value, Value):
        return value.data
    if isinstance(value, Int):
        return torch.tensor(int(value), dtype=torch_dtype(value.dtype))
    if isinstance(value, bool):
        return torch.tensor(value)
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int32 if -(2**31) <= value < 2**31 else torch.int64)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    raise TypeError(f"{value!r} is no value of a kernel")


def _is_literal(value: Any) -> bool:
    return isinstance(value, bool | int | float) and not isinstance(value, Int)


def _kind(dtype: torch.dtype) -> int:
    return 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1


def promoted(a: Any, b: Any, divides: bool = False) -> tuple[Tensor, Tensor]:
    """Both sides of an operation in the type that Triton computes it in, of shapes that broadcast."""
    x, y = as_tensor(a), as_tensor(b)
    if _is_literal(a) and not _is_literal(b) and _kind(x.dtype) <= _kind(y.dtype):
        dtype = y.dtype
    elif _is_literal(b) and not _is_literal(a) and _kind(y.dtype) <= _kind(x.dtype):
        dtype = x.dtype
    elif {x.dtype, y.dtype} == set(_HALF):
        dtype = torch.float16
    elif x.dtype != y.dtype and x.dtype in FP8 + _HALF and y.dtype in FP8 + _HALF:
        dtype = torch.float16 if torch.float16 in (x.dtype, y.dtype) else torch.float32
    else:
        dtype = torch.promote_types(x.dtype, y.dtype)
    if divides and dtype in _HALF:
        dtype = torch.float32
    if x.dim() and y.dim():
        if x.dim() != y.dim():
            raise Fault("shape", f"{list(x.shape)} and {list(y.shape)} do not have as many dimensions")
        if any(m != n and 1 not in (m, n) for m, n in zip(x.shape, y.shape, strict=True)):
            raise Fault("shape", f"{list(x.shape)} and {list(y.shape)} do not broadcast")
    return x.to(dtype), y.to(dtype)


def _value_operators() -> None:
    def binary(function: Callable, flipped: bool, divides: bool) -> Callable:
        def apply(self: Value, other: Any) -> Any:
            if not isinstance(other, Value | int | float):
                return NotImplemented
            pair = promoted(other, self, divides) if flipped else promoted(self, other, divides)
            return scalar_or_value(function(*pair))

        return apply

    def true_division(a: Tensor, b: Tensor) -> Tensor:
        return a / b if a.is_floating_point() else a.float() / b.float()

    functions: dict[str, tuple[Callable, bool]] = {
        "add": (torch.add, False),
        "sub": (torch.sub, False),
        "mul": (torch.mul, False),
        "truediv": (true_division, True),
        "floordiv": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), True),
        "mod": (torch.fmod, True),
        "and": (torch.bitwise_and, False),
        "or": (torch.bitwise_or, False),
        "xor": (torch.bitwise_xor, False),
        "lshift": (torch.bitwise_left_shift, False),
        "rshift": (torch.bitwise_right_shift, False),
    }
    for name, (function, divides) in functions.items():
        setattr(Value, f"__{name}__", binary(function, False, divides))
        setattr(Value, f"__r{name}__", binary(function, True, divides))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Value, f"__{name}__", binary(getattr(torch, name), False, False))
    Value.__hash__ = object.__hash__  # type: ignore[method-assign]


_value_operators()


def reduce_sum(value: Value, axis: int | None) -> Any:
    """Sums over an axis, or over all."""
    data = value.data
    if not data.is_floating_point():
        kind = torch.int64 if data.dtype.itemsize == 8 else torch.int32
        return scalar_or_value(data.sum(dtype=kind) if axis is None else data.sum(axis, dtype=kind))
    return scalar_or_value(data.sum() if axis is None else data.sum(axis))


class Pointer:
    """A pointer, or a tensor of pointers, into a tensor of global memory."""

    def __init__(self, memory: Tensor, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    @classmethod
    def of(cls, tensor: Tensor) -> "Pointer":
        """The pointer that a kernel gets for a tensor."""
        tensor = tensor.detach()
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
        return cls(tensor.as_strided((span,), (1,)))

    @property
    def dtype(self) -> Any:
        return gl.pointer_type(kernel_dtype(self.memory.dtype))

    @property
    def shape(self) -> list[int]:
        return self.offset.shape if isinstance(self.offset, Value) else []

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Pointer":
        return Pointer(self.memory, self.offset - other)

    def lanes(self, mask: Any) -> tuple[Tensor, Tensor | None]:
        """(offsets, mask or None) of one shape; every lane that is not masked lies inside the tensor."""
        offsets = as_tensor(self.offset).to(torch.int64)
        active = None
        if mask is not None:
            active, offsets = torch.broadcast_tensors(as_tensor(mask).bool(), offsets)
        outside = (offsets < 0) | (offsets >= self.memory.numel())
        if active is not None:
            outside = outside & active
        if outside.any():
            place = int(offsets[outside].flatten()[0])
            raise Fault("bounds", f"element {place} of a tensor that has {self.memory.numel()}")
        return offsets, active
