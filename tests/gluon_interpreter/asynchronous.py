"""Work that goes on beside the partition that started it: TMA copies and wgmmas. It is done at random times, within its bounds.

A load writes its bytes in pieces, each of which arrives at its barrier as it is written. A product reads its operands at some
moment between its issue and the wait that retires it. A store reads shared memory before `store_wait` returns for it and writes
global memory at any time up to the end of the kernel.
"""

import itertools
import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from . import memory, scheduler
from .faults import Fault
from .memory import Barrier, Shared
from .scheduler import Task
from .values import FP8, Value, kernel_dtype

_FP8_TYPES = (gl.float8e4nv, gl.float8e5)


class Descriptor:
    """What a kernel sees of a tensor descriptor."""

    def __init__(self, described: Any) -> None:
        self.base: Tensor = described.base.detach()
        self.shape = [int(size) for size in described.shape]
        self.strides = [int(stride) for stride in described.strides]
        self.block_shape = [int(size) for size in described.block_shape]
        self.layout = described.layout
        self.matrix = self.base.as_strided(self.shape, self.strides)

    @property
    def dtype(self) -> Any:
        return kernel_dtype(self.base.dtype)

    @property
    def block_type(self) -> Any:
        return gl.block_type(self.dtype, self.block_shape)

    def box(self, coordinates: Sequence[Any], view: Shared) -> tuple[int, ...]:
        """The block's place in the matrix."""
        begin = tuple(operator.index(place) for place in coordinates)
        if len(begin) != len(self.shape) or list(view.shape) != self.block_shape or view.dtype != self.dtype:
            raise Fault(
                "shape",
                f"a block {self.dtype} {self.block_shape} at {list(begin)} is not {view.name}, {view.dtype} {list(view.shape)}",
            )
        if any(not -(2**31) <= place < 2**31 for place in begin):
            raise Fault("bounds", f"coordinates {list(begin)} are no int32")
        return begin

    def inside(self, begin: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """(of the matrix, of the block): what both have; None where the block lies outside."""
        of_matrix, of_block = [], []
        for place, block, size in zip(begin, self.block_shape, self.shape, strict=True):
            first, last = max(place, 0), min(place + block, size)
            if first >= last:
                return None
            of_matrix.append(slice(first, last))
            of_block.append(slice(first - place, last - place))
        return tuple(of_matrix), tuple(of_block)


class Operation:
    """Something asynchronous; `where` is its place in the kernel."""

    def __init__(self, task: Task, what: str) -> None:
        self.task = task
        self.name = f"{what} of {task.name} at {scheduler.place()}"
        task.machine.operations.append(self)

    def __str__(self) -> str:
        return self.name

    def first(self) -> "Operation":
        """What has to go on before this can: itself, or one that was started before it."""
        return self

    def advance(self) -> bool:
        """Do a part of it; whether that was the last."""
        raise NotImplementedError


class Load(Operation):
    def __init__(self, task: Task, descriptor: Descriptor, coordinates: Any, barrier: Barrier, view: Shared) -> None:
        self.begin = descriptor.box(coordinates, view)
        barrier.check_fence(task)
        super().__init__(task, "TMA load")
        self.descriptor, self.barrier, self.view = descriptor, barrier, view
        agent, time = (barrier, "copies"), barrier.phase + 1
        memory.touch(task, view, writes=True, what="TMA load", agent=agent, time=time)
        task.program.loads[barrier] = (time, self)
        inside = descriptor.inside(self.begin)
        if inside is not None:
            task.machine.owners.read(task.program, descriptor.matrix[inside[0]])
        barrier.copies += 1
        self.clock, self.fenced = dict(task.clock), dict(task.fenced)
        view.tensor().copy_(_poison(view))
        rows = view.shape[0]
        cuts = sorted({0, rows, *(task.machine.random.randrange(rows) for _ in range(2))})
        self.pieces = list(itertools.pairwise(cuts))
        task.machine.random.shuffle(self.pieces)

    def advance(self) -> bool:
        first, last = self.pieces.pop()
        block = torch.zeros(self.descriptor.block_shape, dtype=self.view.kind)
        inside = self.descriptor.inside(self.begin)
        if inside is not None:
            of_matrix, of_block = inside
            block[of_block] = self.descriptor.matrix[of_matrix]
        self.view.tensor()[first:last] = block[first:last]
        self.barrier.brought += (last - first) * prod(self.view.shape[1:]) * self.view.kind.itemsize
        if not self.pieces:
            self.barrier.copies -= 1
            self.barrier.learn(self.clock, self.fenced)
        self.barrier.advance()
        return not self.pieces


def _poison(view: Shared) -> Tensor:
    return torch.full((prod(view.shape) * view.kind.itemsize,), 255, dtype=torch.uint8).view(view.kind).view(view.shape)


class Store(Operation):
    def __init__(self, task: Task, descriptor: Descriptor, coordinates: Any, view: Shared) -> None:
        self.begin = descriptor.box(coordinates, view)
        super().__init__(task, "TMA store")
        self.descriptor, self.view = descriptor, view
        inside = descriptor.inside(self.begin)
        if inside is not None:
            task.machine.owners.write(task.program, descriptor.matrix[inside[0]], by_copy=True)
        task.issued_stores += 1
        self.number = task.issued_stores
        memory.touch(task, view, writes=False, what="TMA store", agent=(task, "stores"), time=self.number)
        task.stores.append(self)
        self.block: Tensor | None = None

    def read(self) -> None:
        if self.block is None:
            self.block = self.view.tensor().clone()

    def advance(self) -> bool:
        if self.block is None:
            self.read()
            return False
        inside = self.descriptor.inside(self.begin)
        if inside is not None:
            of_matrix, of_block = inside
            self.descriptor.matrix[of_matrix] = self.block[of_block]
        return True


def wait_for_stores(task: Task, outstanding: int) -> None:
    """Return when all stores of a partition but the latest `outstanding` have read shared memory."""
    while len(task.stores) > outstanding:
        store = task.stores.pop(0)
        store.read()
        task.clock[(task, "stores")] = store.number


class Product(Operation):
    """a [M, K] b [K, N] + sums, or a b where sums is None; `a` is a tensor in registers or in shared memory."""

    def __init__(self, task: Task, a: Any, b: Shared, sums: Value, adds: bool) -> None:
        self.a, self.b, self.sums, self.adds = a, b, sums, adds
        _check_operands(a, b, sums)
        super().__init__(task, "wgmma")
        task.issued_products += 1
        self.number = task.issued_products
        for operand in (a, b):
            if isinstance(operand, Shared):
                memory.touch(task, operand, writes=False, what="wgmma", agent=(task, "products"), time=self.number)
        task.products.append(self)
        self.result: Any = None
        self.retired = False

    @property
    def shape(self) -> list[int]:
        """Of its result."""
        return [self.a.shape[0], self.b.shape[1]]

    def first(self) -> Operation:
        return next(product for product in self.task.products if product.result is None)

    def advance(self) -> bool:
        a = self.a.tensor() if isinstance(self.a, Shared) else self.a.data
        self.result = a.float() @ self.b.tensor().float()
        if self.adds:
            before = self.sums.product
            self.result += self.sums.data if before is None else before.result
        self.sums = None  # type: ignore[assignment]
        return True


def wait_for_products(task: Task, outstanding: int) -> None:
    """Retire all products of a partition but the latest `outstanding`."""
    while len(task.products) > outstanding:
        product = task.products[0]
        if product.result is None:
            product.advance()
            task.machine.operations.remove(product)
        task.products.pop(0)
        product.retired = True
        task.clock[(task, "products")] = product.number


def _check_operands(a: Any, b: Shared, sums: Value) -> None:
    """What wgmma takes: 64 rows at a time, K in pieces of 32 bytes, 8-bit types with contiguous K."""
    both_fp8 = isinstance(b, Shared) and a.dtype in _FP8_TYPES and b.dtype in _FP8_TYPES  # either format each
    if not isinstance(b, Shared) or (a.dtype != b.dtype and not both_fp8):
        raise Fault("shape", f"wgmma of {a.dtype} and {b.dtype}, the second of which lies in shared memory")
    (m, k), (inner, n) = a.shape, b.shape
    if k != inner or list(sums.shape) != [m, n] or sums.dtype != gl.float32:
        raise Fault("shape", f"wgmma of {list(a.shape)} and {list(b.shape)} into {sums.dtype} {list(sums.shape)}")
    if m % 64 or n % 8 or k * b.kind.itemsize % 32:
        raise Fault("shape", f"there is no wgmma of {m} x {n} x {k} of {b.dtype}")
    k_major = b.strides[0] == 1 and (not isinstance(a, Shared) or a.strides[1] == 1)
    if b.kind in FP8 and not k_major:
        raise Fault("shape", "wgmma takes 8-bit operands whose K is contiguous")


def fence(task: Task) -> None:
    """What `task` stored is seen by asynchronous work of whoever learns of this, from now on.

    A fence by who reads, after a barrier, may do as well by PTX's rules; nobody relies on that, so it counts for nothing here.
    """
    task.fenced[task] = task.clock[task]
    task.released()
