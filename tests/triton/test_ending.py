"""bertfast.triton.ending: the protocol under any interleaving of programs, and the kernels' bits whoever is the last."""

import os
import random
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from bertfast.triton import ending, launch

COLS, WARPS = 32, 1


class Device:
    """Memory as programs see it: rows of partial sums, and counters that only `count` changes in one step."""

    def __init__(self, parts: int) -> None:
        self.rows: dict[object, object] = {}
        self.counters: dict[object, int] = {}
        self.out: list[object] = []
        self.parts = parts

    def count(self, name) -> int:
        before = self.counters.get(name, 0)
        self.counters[name] = before + 1
        return before


def program(device: Device, part: int, counts_first: bool = False):
    """What `ending.end` does in one program, by steps between which others run. None stands for a row that is not there yet."""
    size, parts = ending.SET, device.parts
    if counts_first:
        before = device.count(("set", part // size))
        yield
    device.rows[part] = part
    yield
    number, sets = part // size, -(-parts // size)
    begin, stop = number * size, min(number * size + size, parts)
    if not counts_first:
        before = device.count(("set", number))
        yield
    if before != stop - begin - 1:
        return
    total = []
    for row in range(begin, stop):
        total.append(device.rows.get(row))
        yield
    device.rows["set", number] = total
    yield
    device.counters["set", number] = 0
    yield
    if device.count("group") != sets - 1:
        return
    yield
    device.out.append([device.rows.get(("set", other)) for other in range(sets)])
    yield
    device.counters["group"] = 0


def interleaved(device: Device, chance: random.Random, **options) -> None:
    """All programs to their ends, whose turn it is drawn for each step; only some of them run at a time, as on a GPU."""
    waiting = [program(device, part, **options) for part in range(device.parts)]
    resident = chance.randint(1, device.parts)
    while waiting:
        number = chance.randrange(min(resident, len(waiting)))
        try:
            next(waiting[number])
        except StopIteration:
            waiting.pop(number)


def sets_of(parts: int) -> list[list[int]]:
    return [list(range(begin, min(begin + ending.SET, parts))) for begin in range(0, parts, ending.SET)]


@pytest.mark.parametrize("parts", [1, 15, 16, 17, 40, 100])
def test_any_interleaving_ends_once_with_all_rows_in_order(parts):
    chance = random.Random(parts)
    device = Device(parts)
    for _ in range(200):
        device.rows.clear()  # what an earlier launch left is not taken for this one's
        device.out.clear()
        interleaved(device, chance)
        assert device.out == [sets_of(parts)]
        assert not any(device.counters.values())


def test_the_model_sees_a_program_that_counts_before_it_stores():
    chance, wrong = random.Random(0), 0
    for _ in range(200):
        device = Device(40)
        interleaved(device, chance, counts_first=True)
        wrong += device.out != [sets_of(40)]
    assert wrong > 20


@triton.jit
def rows_kernel(x_ptr, partial_ptr, counter_ptr, out_ptr, F: tl.constexpr, COLS: tl.constexpr, DEEP: tl.constexpr):
    """Program (group, part) leaves a row of x as its partial sums."""
    part = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    row = tl.load(x_ptr + part * F + col, mask=col < F, other=0.0)
    tl.store(partial_ptr + part * F + col, row, mask=col < F)
    ending.end(partial_ptr, counter_ptr, out_ptr, tl.program_id(0), part, tl.num_programs(1), F, COLS, DEEP)


def ended(x, counter, dtype):
    """The column sums of x [parts, F], ended in the kernel, and what of its memory a second launch would find."""
    parts, size = x.shape
    partial, out = ending.partials(parts, size, x.device), torch.empty(size, dtype=dtype, device=x.device)
    grid = launch.cdiv(size, COLS), parts
    constants = {"F": size, "COLS": COLS, "DEEP": ending.is_deep(parts)}
    launch.launch(rows_kernel, grid, (x, partial, counter, out), constants, warps=WARPS)
    return out, partial


@pytest.fixture
def any_order(monkeypatch, triton_ops):
    """Programs of the interpreter in an order that is drawn for each launch, where there is no GPU."""
    if not launch.INTERPRETED:
        return
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    set_index, chance, orders = type(builder).set_grid_idx, random.Random(3), {}

    def shuffled(x, y, z):
        grid = tuple(builder.grid_dim)
        if (x, y, z) == (0, 0, 0):
            places = [(a, b, c) for a in range(grid[0]) for b in range(grid[1]) for c in range(grid[2])]
            orders[grid] = dict(zip(places, chance.sample(places, len(places)), strict=True))
        set_index(builder, *orders[grid][x, y, z])

    monkeypatch.setattr(builder, "set_grid_idx", shuffled, raising=False)


@pytest.mark.parametrize(("parts", "size"), [(1, 7), (16, 40), (17, 40), (50, 64), (300, 8)])
def test_bits_are_those_of_a_launch_of_its_own_whoever_is_last(any_order, poisoned, parts, size):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(parts, size, device=device)
    counter = ending.counter_of(x, launch.cdiv(size, COLS), parts)
    found, partial = ended(x, counter, torch.float32)
    assert not counter.any()
    assert torch.equal(partial[:parts], x)
    for _ in range(3):
        assert torch.equal(ended(x, counter, torch.float32)[0], found)
    assert not counter.any()
    alone = torch.full_like(found, float("nan"))
    ending.add_up(partial, parts, alone, COLS, WARPS)
    assert torch.equal(alone, found)
    exact, allowed = x.double().sum(0), torch.finfo(torch.float32).eps * x.abs().double().sum(0)
    assert ((found.double() - exact).abs() <= allowed * 4).all()
    assert torch.equal(ended(x, counter, torch.float16)[0], found.half())


def test_order_is_shuffled(any_order):
    if not launch.INTERPRETED:
        pytest.skip("a GPU has an order of its own")
    from triton.runtime import interpreter

    builder, seen = interpreter.interpreter_builder, []
    builder.set_grid_dim(2, 3, 1)
    for x in range(2):
        for y in range(3):
            builder.set_grid_idx(x, y, 0)
            seen.append(tuple(builder.grid_idx))
    assert sorted(seen) == [(x, y, 0) for x in range(2) for y in range(3)] != seen


CODE = """
import torch
from bertfast.ops.linear import ending_sums
from bertfast.triton import aot, launch
with launch.recording({arch}) as launches:
    ending_sums.column_sum(torch.empty(16384, 2304, dtype=torch.bfloat16, device="meta"))
print(aot.compile_launch(launches[0], {arch}).asm["ptx"])
"""


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_code_stores_then_counts_then_reads(arch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE.format(arch=arch)]
    got = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert got.returncode == 0, got.stderr[-4000:]
    kinds = {"st.global": "s", "bar.sync": "b", "atom.global.gpu.acq_rel.add": "A", "ld.global.cg": "r", "atom.": "?"}
    words = [line.strip().removeprefix("@").partition(" ") for line in got.stdout.splitlines()]
    names = [rest if head.startswith(("%", "!")) else head + rest for head, _, rest in words]
    order = "".join(next((kind for begin, kind in kinds.items() if name.startswith(begin)), "") for name in names)
    # What a program stores, a barrier, the count, a barrier, the rows of its set, its sum and zero; then the same of the sets.
    assert re.fullmatch(r"b*sb+Ab+r{8}b+s+b+Ab+r{8}b+s+", order), order
