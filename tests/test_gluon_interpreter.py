"""The interpreter of Gluon kernels: right kernels give right results under every schedule, and each planted fault is found."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import gluon_interpreter
from gluon_interpreter import Fault
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from bertfast.triton import private

SEEDS = range(20)
BLOCK_K = 32

# What is planted in the kernel below, and the kinds of fault that show it: one in every order of events.
PLANTED = {
    "no empty wait": {"race", "arrivals"},
    "no full wait": {"race", "uninitialised"},
    "empty parity": {"deadlock"},
    "full parity": {"race", "uninitialised"},
    "stage parity": {"deadlock"},
    "one arrival too many wanted": {"deadlock"},
    "one arrival too few wanted": {"race"},
    "consumer arrives twice": {"race", "deadlock"},
    "no fence": {"fence"},
    "no fence of barriers": {"fence"},
    "fence before the store": {"fence"},
    "fence by who reads": {"fence"},
    "no product wait": {"accumulator"},
    "released while read": {"race"},
    "too many bytes": {"bytes"},
    "too few bytes": {"bytes", "race", "uninitialised"},
    "no store wait": {"race"},
    "no last store wait": {"unfinished"},
    "result not waited for": {"race", "uninitialised"},
    "result not freed": {"deadlock"},
    "one load too many": {"unfinished"},
    "wrong buffer": {"race"},
}


@gluon.jit
def _tiles(tiles):
    """How many tiles this program makes."""
    return (tiles - gl.program_id(0) + gl.num_programs(0) - 1) // gl.num_programs(0)


@gluon.jit
def _corner(i, tiles_m):
    tile = i * gl.num_programs(0) + gl.program_id(0)
    return tile % tiles_m * 128, tile // tiles_m


@gluon.jit
def _loads(
    descriptors, buffers, barriers, sizes, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, FAULT: gl.constexpr
):
    a_desc, b_desc = descriptors
    a_buffers, b_buffers = buffers
    full, empty, _, _ = barriers
    tiles_m, tiles, steps = sizes
    BYTES: gl.constexpr = (128 + BN) * BK * 2
    count = 0
    for i in range(_tiles(tiles)):
        row, col = _corner(i, tiles_m)
        for step in range(steps):
            s = count % STAGES
            if FAULT == "empty parity":
                mbarrier.wait(empty.index(s), (count // STAGES) & 1)
            elif FAULT == "stage parity":
                mbarrier.wait(empty.index(s), (count & 1) ^ 1)
            elif FAULT != "no empty wait":
                mbarrier.wait(empty.index(s), ((count // STAGES) & 1) ^ 1)
            if FAULT == "too many bytes":
                mbarrier.expect(full.index(s), BYTES + 64)
            elif FAULT == "too few bytes":
                mbarrier.expect(full.index(s), 128 * BK * 2)
            else:
                mbarrier.expect(full.index(s), BYTES)
            tma.async_copy_global_to_shared(a_desc, [row, step * BK], full.index(s), a_buffers.index(s))
            tma.async_copy_global_to_shared(b_desc, [col * BN, step * BK], full.index(s), b_buffers.index(s))
            count += 1
    if FAULT == "one load too many":
        s = count % STAGES
        mbarrier.wait(empty.index(s), ((count // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(s), BYTES)
        tma.async_copy_global_to_shared(a_desc, [0, 0], full.index(s), a_buffers.index(s))
        tma.async_copy_global_to_shared(b_desc, [0, 0], full.index(s), b_buffers.index(s))


@gluon.jit
def _multiply(
    buffers, barriers, result, sizes, BN: gl.constexpr, STAGES: gl.constexpr, FAULT: gl.constexpr, C: gl.constexpr
):
    a_buffers, b_buffers = buffers
    full, empty, left, free = barriers
    _, tiles, steps = sizes
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    count = 0
    for i in range(_tiles(tiles)):
        sums = gl.zeros([64, BN], gl.float32, L)
        for step in range(steps):
            s = count % STAGES
            if FAULT == "full parity":
                mbarrier.wait(full.index(s), ((count // STAGES) & 1) ^ 1)
            elif FAULT != "no full wait":
                mbarrier.wait(full.index(s), (count // STAGES) & 1)
            a = a_buffers.index((count + 1) % STAGES if FAULT == "wrong buffer" else s).slice(C * 64, 64)
            sums = warpgroup_mma(a, b_buffers.index(s).permute((1, 0)), sums, is_async=True)
            sums = warpgroup_mma_wait(1, deps=[sums])
            if FAULT == "released while read":
                mbarrier.arrive(empty.index(s))
            else:
                mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), pred=step > 0)
            if FAULT == "consumer arrives twice":
                mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES), pred=step > 0)
            count += 1
        if FAULT != "no product wait":
            sums = warpgroup_mma_wait(0, deps=[sums])
        if FAULT != "released while read":
            mbarrier.arrive(empty.index((count + STAGES - 1) % STAGES))
        mbarrier.wait(free, (i & 1) ^ 1)
        if FAULT == "fence before the store":
            fence_async_shared()
        result.slice(C * 64, 64).store(sums.to(gl.bfloat16))
        if FAULT != "no fence" and FAULT != "fence before the store" and FAULT != "fence by who reads":
            fence_async_shared()
        mbarrier.arrive(left)


@gluon.jit
def _stores(out_desc, barriers, result, sizes, BN: gl.constexpr, FAULT: gl.constexpr):
    _, _, left, free = barriers
    tiles_m, tiles, _ = sizes
    for i in range(_tiles(tiles)):
        row, col = _corner(i, tiles_m)
        if FAULT != "result not waited for":
            mbarrier.wait(left, i & 1)
        if FAULT == "fence by who reads":
            fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [row, col * BN], result)
        if FAULT == "no last store wait":
            if i + 1 < _tiles(tiles):
                tma.store_wait(0)
        elif FAULT != "no store wait":
            tma.store_wait(0)
        if FAULT != "result not freed":
            mbarrier.arrive(free)
    if FAULT == "no store wait":
        tma.store_wait(0)


@gluon.jit
def product(
    a_desc,
    b_desc,
    out_desc,
    tiles_m,
    tiles,
    steps,
    BN: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    FAULT: gl.constexpr,
):
    a_buffers = gl.allocate_shared_memory(a_desc.dtype, [STAGES, 128, BK], a_desc.layout)
    b_buffers = gl.allocate_shared_memory(b_desc.dtype, [STAGES, BN, BK], b_desc.layout)
    result = gl.allocate_shared_memory(out_desc.dtype, [128, BN], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    left = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    READERS: gl.constexpr = (
        3 if FAULT == "one arrival too many wanted" else 1 if FAULT == "one arrival too few wanted" else 2
    )
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=READERS)
    mbarrier.init(left, count=2)
    mbarrier.init(free, count=1)
    if FAULT != "no fence of barriers":
        fence_async_shared()
    barriers = (full, empty, left, free)
    sizes = (tiles_m, tiles, steps)
    gl.warp_specialize(
        [
            (_loads, ((a_desc, b_desc), (a_buffers, b_buffers), barriers, sizes, BN, BK, STAGES, FAULT)),
            (_multiply, ((a_buffers, b_buffers), barriers, result, sizes, BN, STAGES, FAULT, 0)),
            (_multiply, ((a_buffers, b_buffers), barriers, result, sizes, BN, STAGES, FAULT, 1)),
            (_stores, (out_desc, barriers, result, sizes, BN, FAULT)),
        ],
        [4, 4, 4],
        [120, 120, 40],
    )


def multiplied(m, n, k, *, seed, fault="right", programs=2, stages=2, dtype=torch.bfloat16):
    """(what the kernel makes of random a and b, a b^T in float32)"""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator).to(dtype)
    b = torch.randn(n, k, generator=generator).to(dtype)
    out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
    tiles_m, tiles_n = -(-m // 128), -(-n // 32)
    args = (
        private.descriptor(a, (128, BLOCK_K)),
        private.descriptor(b, (32, BLOCK_K)),
        private.descriptor(out, (128, 32)),
        *(tiles_m, tiles_m * tiles_n, -(-k // BLOCK_K)),
    )
    constants = {"BN": 32, "BK": BLOCK_K, "STAGES": stages, "FAULT": fault}
    gluon_interpreter.run(product, (programs,), args, constants, seed=seed)
    return out, a.float() @ b.float().T


@pytest.mark.parametrize("size", [(128, 32, 32), (200, 72, 104), (300, 32, 40)])
def test_a_right_kernel(size):
    for seed in SEEDS:
        out, expected = multiplied(*size, seed=seed, programs=1 + seed % 3, stages=2 + seed % 2)
        torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault):
    for seed in SEEDS:
        with pytest.raises(Fault) as problem:
            multiplied(200, 72, 104, seed=seed, fault=fault, programs=1 + seed % 3)
        assert problem.value.kind in PLANTED[fault]


def test_a_seed_decides_everything():
    """Every run with one seed ends in the same words; another seed's differ."""

    def end(seed):
        with pytest.raises(Fault) as problem:
            multiplied(200, 72, 104, seed=seed, fault="no full wait")
        return str(problem.value)

    ends = [end(seed) for seed in range(6)]
    assert ends == [end(seed) for seed in range(6)]
    assert len(set(ends)) > 1


def test_a_deadlock_says_who_waits_for_what():
    with pytest.raises(Fault) as problem:
        multiplied(128, 32, 96, seed=1, fault="one arrival too many wanted", programs=1)
    text = str(problem.value)
    assert "_loads 0 of program 0 waits for parity 0 of empty[0] in phase 0, waiting for 1 of 3 arrivals" in text
    assert "_stores 3 of program 0 waits for parity 0 of left in phase 0, waiting for 2 of 2 arrivals" in text
    assert "test_gluon_interpreter.py:" in text
