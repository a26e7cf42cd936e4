"""The language of the interpreter of Gluon kernels: values, memory, descriptors, and the misuse of them that it refuses."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import gluon_interpreter
from gluon_interpreter import Fault, scheduler
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma

from bertfast.triton import private


@gluon.jit
def copy(x_desc, y_desc, row, col, to_row, to_col):
    block = gl.allocate_shared_memory(x_desc.dtype, x_desc.block_shape, x_desc.layout)
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=1)
    fence_async_shared()
    mbarrier.expect(barrier, x_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(x_desc, [row, col], barrier, block)
    mbarrier.wait(barrier, 0)
    tma.async_copy_shared_to_global(y_desc, [to_row, to_col], block)
    tma.store_wait(0)
    mbarrier.invalidate(barrier)


@pytest.mark.parametrize("place", [(0, 0), (5, 24), (-3, -8), (40, 0)])
def test_outside_of_a_descriptor_zeros_are_read_and_nothing_is_written(place):
    x, y = torch.randn(10, 40).bfloat16(), torch.full((10, 40), 7.0).bfloat16()
    row, col = place
    args = [private.descriptor(t, (16, 32)) for t in (x, y)]
    gluon_interpreter.run(copy, (1,), (*args, row, col, 4, -8), {}, seed=3)
    padded = torch.nn.functional.pad(x, (16, 48, 16, 48))[row + 16 :, col + 16 :] if row < 10 else torch.zeros(16, 48)
    expected = torch.full((10, 40), 7.0)
    expected[4:, :24] = padded[:6, 8:32].float()
    assert torch.equal(y.float(), expected)


@gluon.jit
def compute(x_ptr, y_ptr, z_ptr, n, factor, SIZE: gl.constexpr):
    L: gl.constexpr = gl.BlockedLayout([1, 2 * SIZE], [32, 1], [4, 1], [1, 0])
    rows = gl.arange(0, SIZE, layout=gl.SliceLayout(1, L))
    cols = gl.arange(0, 2 * SIZE, layout=gl.SliceLayout(0, L))
    place = gl.expand_dims(rows * (2 * SIZE), 1) + gl.expand_dims(cols, 0)
    inside = gl.expand_dims(rows < n, 1) & gl.expand_dims(cols < n, 0)
    x = gl.load(x_ptr + place, mask=inside, other=0.0)
    x = gl.where(x > 0, x, -x * factor).to(gl.float32)
    left, right = gl.split(gl.permute(gl.reshape(x, [SIZE, 2, SIZE]), (0, 2, 1)))
    both = gl.maximum(left, gl.exp2(right)) / 3
    joined = gl.convert_layout(gl.join(gl.sum(both, 1), gl.max(both, 1)), L)
    out = gl.expand_dims(rows, 1) * 2 + gl.expand_dims(gl.arange(0, 2, layout=gl.SliceLayout(0, L)), 0)
    gl.store(y_ptr + out, joined)
    gl.atomic_add(z_ptr + gl.program_id(0) % 2, -7 // 2 + gl.num_programs(0))


def test_registers_and_pointers():
    x, y, z = torch.randn(8, 16).bfloat16(), torch.zeros(8, 2), torch.zeros(2, dtype=torch.int32)
    gluon_interpreter.run(compute, (1,), (x, y, z, 6, 0.5), {"SIZE": 8})
    masked = torch.zeros(8, 16).bfloat16()
    masked[:6, :6] = x[:6, :6]
    kept = torch.where(masked > 0, masked.float(), -masked.float() * 0.5)
    both = torch.maximum(kept[:, :8], torch.exp2(kept[:, 8:])) / 3
    torch.testing.assert_close(y, torch.stack((both.sum(1), both.amax(1)), 1))
    assert z.tolist() == [-4 + 1, 0]


def test_what_lies_outside_of_a_tensor_is_not_read():
    with pytest.raises(Fault, match="bounds: element 64 of a tensor that has 64"):
        gluon_interpreter.run(compute, (1,), (torch.zeros(64), torch.zeros(16), torch.zeros(2), 8, 1.0), {"SIZE": 8})


@gluon.jit
def misuse(x_ptr, y_ptr, n, CASE: gl.constexpr):
    L: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    S: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    memory = gl.allocate_shared_memory(gl.float32, [2, 16, 64], S)
    barriers = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(barriers.index(0), count=2)
    if CASE == "never written":
        memory.index(1).store(gl.zeros([16, 64], gl.float32, L))
        memory.index(0).load(L)
    elif CASE == "another shape":
        memory.index(0).store(gl.zeros([64, 16], gl.float32, L))
    elif CASE == "another dtype":
        memory.index(0).store(gl.zeros([16, 64], gl.bfloat16, L))
    elif CASE == "no such buffer":
        memory.index(n)
    elif CASE == "no barrier":
        mbarrier.arrive(barriers.index(1))
    elif CASE == "gone barrier":
        mbarrier.invalidate(barriers.index(0))
        mbarrier.arrive(barriers.index(0))
    elif CASE == "no parity":
        mbarrier.wait(barriers.index(0), n)
    elif CASE == "too many arrivals":
        mbarrier.arrive(barriers.index(0), count=3)
    elif CASE == "no power of two":
        gl.zeros([16, 3], gl.float32, L)
    elif CASE == "overflow":
        gl.store(y_ptr, n * (1 << 30) * 2)
    elif CASE == "endless":
        while n > 0:
            n += gl.load(x_ptr)
    elif CASE == "written twice":
        gl.store(y_ptr, n)
    elif CASE == "read from another program":
        gl.store(y_ptr + gl.program_id(0), gl.load(y_ptr + 1 - gl.program_id(0)))
    elif CASE == "no tensors that broadcast":
        gl.zeros([16, 64], gl.float32, L) + gl.zeros([16, 32], gl.float32, L)
    else:
        gl.histogram(gl.arange(0, 16, layout=gl.SliceLayout(0, L)), 16)


MISUSE = {
    "never written": "uninitialised",
    "another shape": "shape",
    "another dtype": "shape",
    "no such buffer": "bounds",
    "no barrier": "barrier",
    "gone barrier": "barrier",
    "no parity": "barrier",
    "too many arrivals": "arrivals",
    "no power of two": "shape",
    "overflow": "overflow",
    "endless": "steps",
    "written twice": "race",
    "read from another program": "race",
    "no tensors that broadcast": "shape",
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_found(case, monkeypatch):
    monkeypatch.setattr(scheduler, "STEPS", 1000)
    args = torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), 2
    with pytest.raises(Fault) as problem:
        gluon_interpreter.run(misuse, (2,), args, {"CASE": case})
    assert problem.value.kind == MISUSE[case]


def test_what_is_not_emulated_is_said():
    args = torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), 2
    with pytest.raises(NotImplementedError, match="histogram"):
        gluon_interpreter.run(misuse, (2,), args, {"CASE": "not emulated"})


@gluon.jit
def small_product(a_ptr, b_ptr, out_ptr, TRANSPOSED: gl.constexpr, A_IN_REGISTERS: gl.constexpr):
    """out [64, 16] = a [64, 32] b [16, 32]^T, each of them loaded by threads; sums begin at 1."""
    L: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    kind: gl.constexpr = a_ptr.dtype.element_ty
    M: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 256 // kind.primitive_bitwidth])
    S: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 32], kind)
    k = gl.expand_dims(gl.arange(0, 32, layout=gl.SliceLayout(0, L)), 0)
    rows = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, L)), 1)
    columns = gl.expand_dims(gl.arange(0, 16, layout=gl.SliceLayout(1, L)), 1)
    a = gl.load(a_ptr + rows * 32 + k)
    b = gl.load(b_ptr + columns * 32 + k)
    b_memory = gl.allocate_shared_memory(kind, [32, 16] if TRANSPOSED else [16, 32], S)
    b_memory.store(gl.permute(b, (1, 0)) if TRANSPOSED else b)
    right = b_memory if TRANSPOSED else b_memory.permute((1, 0))
    if A_IN_REGISTERS:
        left = gl.convert_layout(a, gl.DotOperandLayout(0, M, 32 // kind.primitive_bitwidth))
    else:
        left = gl.allocate_shared_memory(kind, [64, 32], S)
        left.store(a)
    fence_async_shared()
    sums = warpgroup_mma(left, right, gl.full([64, 16], 1.0, gl.float32, M))
    place = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, M)), 1) * 16
    gl.store(out_ptr + place + gl.expand_dims(gl.arange(0, 16, layout=gl.SliceLayout(0, M)), 0), sums)


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_products_of_other_types(dtype, in_registers):
    a, b, out = torch.randn(64, 32).to(dtype), torch.randn(16, 32).to(dtype), torch.empty(64, 16)
    gluon_interpreter.run(small_product, (1,), (a, b, out), {"TRANSPOSED": False, "A_IN_REGISTERS": in_registers})
    torch.testing.assert_close(out, a.float() @ b.float().T + 1)


def test_8_bit_operands_have_a_contiguous_k():
    a, b, out = (
        torch.zeros(64, 32).to(torch.float8_e4m3fn),
        torch.zeros(16, 32).to(torch.float8_e4m3fn),
        torch.empty(64, 16),
    )
    with pytest.raises(Fault, match="K is contiguous"):
        gluon_interpreter.run(small_product, (1,), (a, b, out), {"TRANSPOSED": True, "A_IN_REGISTERS": False})


@gluon.jit
def to_8_bits(x_ptr, y_ptr, z_ptr, SIZE: gl.constexpr):
    place = gl.arange(0, SIZE, layout=gl.BlockedLayout([1], [32], [4], [0]))
    x = gl.load(x_ptr + place)
    gl.store(y_ptr + place, x.to(y_ptr.dtype.element_ty))
    small = gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)
    gl.store(z_ptr + place, small)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_saturate_and_assembly_flushes(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.3, -1e9, 1e9, math.inf, -math.inf, math.nan, 1e38, 1e-40])
    y, z = torch.zeros(8).to(dtype), torch.zeros(8)
    gluon_interpreter.run(to_8_bits, (1,), (x, y, z), {"SIZE": 8})
    clamped = x.clamp(-largest, largest).to(dtype).float()
    torch.testing.assert_close(y.float(), clamped, rtol=0, atol=0, equal_nan=True)
    expected = 1 / x
    expected[6], expected[7] = 0, math.inf  # subnormal numbers are zero on both sides
    torch.testing.assert_close(z, expected, equal_nan=True)


def test_programs_may_be_more_than_run_at_a_time():
    x, y, z = torch.randn(8, 16).bfloat16(), torch.zeros(8, 2), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(Fault, match=r"race: program . writes global memory"):
        gluon_interpreter.run(compute, (2,), (x, y, z, 6, 0.5), {"SIZE": 8}, seed=1)
    y = torch.zeros(512)
    for resident in (1, 2, 5):
        gluon_interpreter.run(numbers, (8, 4, 2), (y.zero_(),), {"SIZE": 8}, resident=resident)
        assert torch.equal(y, torch.arange(512.0))


@gluon.jit
def numbers(y_ptr, SIZE: gl.constexpr):
    program = gl.program_id(0) + 8 * (gl.program_id(1) + 4 * gl.program_id(2))
    place = program * SIZE + gl.arange(0, SIZE, layout=gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(y_ptr + place, place.to(gl.float32))
