"""Where the tensors of an optimizer step lie, as a table on the device by which one launch reaches all of them.

    rows      int64 [n, FIELDS]: of each parameter addresses, size, whether all begin on 16 bytes, group, first chunk
    settings  float64 [groups, 4] behind them, as bits
    chunks    int32 [chunks, 2]: parameter, and which CHUNK of its numbers; a program's work

A table is written once and never again, so that a CUDA graph may read it. Another is made where tensors do not lie where they lay
(`ops.stamps` says so: some 80 us for BERT-large), which in eager steps is the rule for gradients: then their addresses alone are
looked at again. 400 rows are 32 KB, copied from pinned memory without a wait. The chunks depend on sizes alone and are shared. A
few tables are kept, and those that somebody holds (`placing`): in a capture nothing can be copied from the host, so a step that is
to be captured is placed before.

Not flat buffers: the bytes that a step moves are the same, a chunk's row and addresses being 60 bytes of 230,000, and parameters,
gradients and state stay the tensors that they are, for checkpoints, sharding, and whoever replaces one. Gradients in a flat buffer
would have to be zeroed and added to instead of written: 12 bytes more for each of 28.
"""

import copy
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertfast import _torch
from bertfast.ops.stamps import Stamp, stamp

CHUNK = 8192  # numbers of a parameter that one program updates
WEIGHT, GRADIENT, MEAN, SQUARE, STEP, COPY, SIZE, WIDE, GROUP, FIRST, FIELDS = range(11)
_RECENT = 8  # tables of eager steps: a step has up to three
_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
_PLAIN = frozenset((Tensor, torch.nn.Parameter))


class Columns(NamedTuple):
    """The tensors of a step: lists of one for each parameter, or empty."""

    weights: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()
    means: Sequence[Tensor] = ()
    squares: Sequence[Tensor] = ()
    steps: Sequence[Tensor] = ()
    copies: Sequence[Tensor] = ()  # [0] where there is none


# Of weight, gradient, moments and copy, the last None where no parameter has one; and of columns that there are not.
Dtypes = tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None, torch.dtype | None]


class Part(NamedTuple):
    """The parameters of the same dtypes: rows first to first + chunks of the chunk table."""

    weight: torch.dtype | None
    gradient: torch.dtype | None
    moment: torch.dtype | None
    copy: torch.dtype | None
    first: int
    chunks: int


class Table:
    """Attributes:
    rows: int64, the rows and behind them the settings.
    chunks: int32 [chunks, 2].
    parts: what one launch each is for.
    parameters: how many rows there are.
    """

    def __init__(self, columns: Columns, sizes: Sequence[int], settings: Sequence[float]) -> None:
        tensors = next(column for column in columns if column)
        self.parameters = len(tensors)
        device = tensors[0].device
        keys = _dtypes(columns)
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        # Stable: one part after another.
        order = sorted(range(self.parameters), key=lambda number: places[keys[number]])
        counts = [-(-tensors[number].numel() // CHUNK) for number in order]
        self.chunks = _chunks(tuple(order), tuple(counts), device)
        first, begin = [0] * self.parameters, 0
        bounds: dict[Dtypes, tuple[int, int]] = {}
        for number, count in zip(order, counts, strict=True):
            first[number] = begin
            start, length = bounds.get(keys[number], (begin, 0))
            bounds[keys[number]] = start, length + count
            begin += count
        self.parts = [Part(*key, first=place, chunks=count) for key, (place, count) in bounds.items() if count]
        host = np.zeros((self.parameters, FIELDS), dtype=np.int64)
        for field, column in enumerate(columns):
            host[:, field] = [_address(t) for t in column] if column else 0
        host[:, SIZE] = [t.numel() for t in tensors]
        host[:, GROUP] = np.repeat(np.arange(len(sizes)), sizes) if sizes else 0
        host[:, FIRST] = first
        self._host, self._settings = host, np.array(settings, dtype=np.float64).view(np.int64)
        self._gradients = _forms(columns.gradients)
        self._send(device)

    def _send(self, device: torch.device) -> None:
        host = self._host
        host[:, WIDE] = (host[:, :STEP] % 16 == 0).all(1) & (host[:, COPY] % 16 == 0)
        self.rows = _sent(torch.from_numpy(np.concatenate((host.ravel(), self._settings))), device)

    def of(self, gradients: Sequence[Tensor]) -> "Table | None":
        """The table where everything but the gradients lies where it lay; None where these have other forms than those before."""
        if _forms(gradients) != self._gradients:
            return None
        made = copy.copy(self)
        made._host = self._host.copy()
        made._host[:, GRADIENT] = [_address(g) for g in gradients]
        made._send(gradients[0].device)
        return made


def _forms(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device]]:
    return [(t.dtype, t.shape, t.stride(), t.device) for t in tensors]


def _dtypes(columns: Columns) -> list[Dtypes]:
    """What decides which launch each parameter is updated by. One without a copy goes with those that have the usual one."""
    weights, gradients, means, _, _, copies = columns
    count = len(next(column for column in columns if column))
    usual = next((c.dtype for c in copies if c.numel()), None)
    of_copies = [c.dtype if c.numel() else usual for c in copies] or [None] * count
    lists = [[t.dtype for t in column] if column else [None] * count for column in (weights, gradients, means)]
    return list(zip(*lists, of_copies, strict=True))


def _address(tensor: Tensor) -> int:
    """0 for an absent copy, and for a tensor that only pretends to be somewhere."""
    return tensor.data_ptr() if tensor.numel() and type(tensor) in _PLAIN else 0


def _sent(host: Tensor, device: torch.device) -> Tensor:
    """On the device; the host does not wait."""
    if device.type == "cuda":
        return torch.empty_like(host, device=device).copy_(host.pin_memory(), non_blocking=True)
    return host.to(device)


_chunk_tables: "deque[tuple[Hashable, Tensor]]" = deque(maxlen=_RECENT)


def _chunks(order: tuple[int, ...], counts: tuple[int, ...], device: torch.device) -> Tensor:
    key = order, counts, device, _stream(device)
    known = next((made for other, made in _chunk_tables if other == key), None)
    if known is not None and type(known) in _PLAIN:
        return known
    of_each = np.array(counts, dtype=np.int64)
    parameter = np.repeat(np.array(order, dtype=np.int32), of_each)
    chunk = np.arange(len(parameter)) - np.repeat(of_each.cumsum() - of_each, of_each)
    made = _sent(torch.from_numpy(np.stack((parameter, chunk.astype(np.int32)), 1)), device)
    _chunk_tables.append((key, made))
    return made


def takes(columns: Columns) -> bool:
    """Whether kernels take these tensors: dense, on one device, of known dtypes, those of a parameter in one order of numbers."""
    lists = [column for column in columns if column]
    devices = {tensor.device for column in lists for tensor in column}
    if len(devices) > 1:
        return False
    for number, reference in enumerate(lists[0]):
        if not _is_dense(reference):
            return False
        for field, column in enumerate(columns):
            if not column or (field == COPY and not column[number].numel()):
                continue
            tensor = column[number]
            if field == STEP:
                if tensor.dtype != torch.float32 or tensor.numel() != 1:
                    return False
            elif tensor.dtype not in _DTYPES or tensor.shape != reference.shape or not _same_order(tensor, reference):
                return False
        if columns.squares and columns.squares[number].dtype != columns.means[number].dtype:
            return False
    return True


def _is_dense(tensor: Tensor) -> bool:
    """Whether the numbers lie in memory without gaps and overlaps, in whatever order."""
    if tensor.is_contiguous():
        return True
    kept = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    expected = 1
    for stride, size in kept:
        if stride != expected:
            return False
        expected *= size
    return True


def _same_order(a: Tensor, b: Tensor) -> bool:
    return (a.is_contiguous() and b.is_contiguous()) or a.stride() == b.stride()


class _Entry(NamedTuple):
    lengths: tuple[int, ...]
    settings: Hashable
    stream: int
    stamp: Stamp
    others: Stamp  # of all but the gradients
    table: Table | None


class Placed:
    """Tables that stay as long as this object: what holds a captured step holds one."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []


_recent: "deque[_Entry]" = deque(maxlen=_RECENT)
_held: "weakref.WeakSet[Placed]" = weakref.WeakSet()
_thread = threading.local()


@contextmanager
def placing(placed: Placed) -> Iterator[None]:
    """Steps only make their tables meanwhile, on this thread, and launch nothing; `placed` keeps those tables."""
    _held.add(placed)
    _thread.placed = placed
    try:
        yield
    finally:
        _thread.placed = None


def is_placing() -> bool:
    """Whether this thread is inside `placing`."""
    return getattr(_thread, "placed", None) is not None


def table(columns: Columns, sizes: Sequence[int] = (), settings: Sequence[float] = ()) -> Table | None:
    """The table of these tensors; None where kernels do not take them.

    Raises:
        RuntimeError: in a capture, where they were not placed before it.
    """
    device = next(column for column in columns if column)[0].device
    copies = [c if c.numel() else None for c in columns.copies]  # whatever stands for an absent one
    others = [*columns.weights, *columns.means, *columns.squares, *columns.steps, *copies]
    tensors = [*columns.gradients, *others]  # what changes in every step first: a stamp looks no further
    lengths, key = tuple(map(len, columns)), (tuple(sizes), tuple(settings))
    stream = _stream(device)
    held = [entry for placed in _held for entry in placed.entries]
    for entry in held:
        if entry.lengths == lengths and entry.settings == key and entry.stamp.holds(tensors):
            return entry.table
    for entry in _recent:
        same = entry.stream == stream and entry.lengths == lengths and entry.settings == key
        if same and not is_placing() and entry.stamp.holds(tensors):
            return entry.table
    if stream and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("an optimizer step is captured whose tensors were not placed before")
    made, kept = None, None
    for entry in reversed(_recent) if columns.gradients else ():
        same = entry.stream == stream and entry.lengths == lengths and entry.settings == key
        if same and entry.table is not None and entry.others.holds(others):
            made, kept = entry.table.of(columns.gradients), entry.others
            break
    if made is None and takes(columns):
        made = Table(columns, sizes, settings)
    entry = _Entry(lengths, key, stream, stamp(tensors), kept or stamp(others), made)
    placed = getattr(_thread, "placed", None)
    if placed is None:
        _recent.append(entry)
    else:
        placed.entries.append(entry)
    return made


def _stream(device: torch.device) -> int:
    return _torch.current_stream(device.index) if device.type == "cuda" and torch.cuda.is_initialized() else 0
