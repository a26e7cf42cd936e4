"""Launches of Gluon kernels: matrices become tensor descriptors on the way, and a repeated launch makes them of other matrices."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from bertfast.triton import aot, launch, private, repeats


@gluon.jit(do_not_specialize=["rows"])
def kernel(x_desc, y_ptr, rows, BLOCK: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    index = gl.arange(0, BLOCK, layout=layout)
    gl.store(y_ptr + index, gl.full([BLOCK], rows, gl.float32, layout))


def call(x, y):
    launch.launch(kernel, (2,), (x, y, x.shape[0]), {"BLOCK": 128}, blocks={0: (64, 32)})


def matrices(device="cpu"):
    return torch.empty(100, 48, dtype=torch.bfloat16, device=device), torch.empty(128, device=device)


def test_a_recorded_launch_compiles():
    with launch.recording(90) as launches:
        call(*matrices("meta"))
    (recorded,) = launches
    assert recorded.is_gluon
    name, kind = recorded.signature[0]
    assert (name, kind[:25]) == ("x_desc", "tensordesc<bf16[64, 32],N")
    assert ("y_ptr", "*fp32") in recorded.signature
    if launch.INTERPRETED:
        pytest.skip("kernels were imported for the interpreter")
    assert aot.resources(aot.compile_launch(recorded, 90)).registers


@pytest.fixture
def calls(monkeypatch):
    """Arguments of the Gluon kernels that are interpreted."""
    made = []
    monkeypatch.setattr(launch, "gluon_interpreter", lambda kernel, grid, args, constants: made.append(args))
    return made


@pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels as tests without a GPU do")
def test_descriptors(calls):
    x, y = matrices()
    call(x, y)
    call(x.t(), y)  # a matrix whose columns are contiguous is described as its memory has it
    for descriptor, *others in calls:
        assert descriptor.base.data_ptr() == x.data_ptr()
        assert (tuple(descriptor.shape), tuple(descriptor.strides), descriptor.block_shape) == (
            (100, 48),
            (48, 1),
            [64, 32],
        )
        assert others[0] is y
    assert [args[2] for args in calls] == [100, 48]


@pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels as tests without a GPU do")
def test_a_repeat_describes_the_matrix_that_it_is_given(calls):
    x, y = matrices()
    with repeats.noting() as made:
        call(x, y)
    again = repeats.repeat(made, (x, y), ())
    other_x, other_y = matrices()
    again(other_x, other_y)
    assert calls[1][0].base.data_ptr() == other_x.data_ptr()
    assert calls[1][1] is other_y


def test_without_an_interpreter_it_is_said(monkeypatch):
    if not launch.INTERPRETED:
        pytest.skip("runs kernels as tests without a GPU do")
    monkeypatch.setattr(launch, "gluon_interpreter", None)
    with pytest.raises(RuntimeError, match="kernel is a Gluon kernel"):
        call(*matrices())


def test_dtypes_have_names():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32):
        assert private.triton_dtype(dtype).primitive_bitwidth == 8 * dtype.itemsize
