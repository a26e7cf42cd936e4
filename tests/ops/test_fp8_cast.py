"""Casts to FP8, their transposed copies, largest magnitudes and scales."""

import pytest
import torch

from bertfast.ops import fp8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Rows and columns: nothing, one row, odd, more than a tile of either, and of both.
SIZES = [(0, 32), (1, 48), (7, 257), (130, 64), (100, 144)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def bits(x):
    return x.contiguous().view(torch.uint8)


def distance_to_nearest(x, dtype):
    """How far x is from the nearest number that the format has."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    distance = (x.double()[..., None] - numbers[numbers.isfinite()]).abs()
    return distance.amin(-1) if x.numel() else x.double()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_cast(implementation, size, kind, dtype, transposed):
    x = (3 * torch.randn(size)).to(kind)
    scale, amax = torch.tensor(0.125), torch.tensor(0.5)
    y, yt = implementation.fp8_cast(x, scale, amax, dtype, transposed)
    assert y.dtype == yt.dtype == dtype
    exact = x.double() / 0.125
    assert torch.equal((y.double() - exact).abs(), distance_to_nearest(exact, dtype))
    assert yt.shape == ((size[1], size[0]) if transposed else (0,))
    if transposed:
        assert torch.equal(bits(yt), bits(y.t()))
    assert float(amax) == max([0.5, *x.float().abs().flatten().tolist()])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_what_is_too_large_is_clamped_and_nan_stays(implementation, dtype):
    largest = fp8.LARGEST[dtype]
    x = torch.tensor([[1e6, -1e6, float("inf"), -float("inf"), float("nan"), largest, 1e-9, -0.0]])
    amax = torch.tensor(0.0)
    y, _ = implementation.fp8_cast(x, torch.tensor(1.0), amax, dtype, False)
    assert y.float()[0, :4].tolist() == [largest, -largest, largest, -largest]
    assert bool(y.float()[0, 4].isnan())
    assert y.float()[0, 5:].tolist() == [largest, 0.0, 0.0]
    assert not bool(amax.isfinite())  # what is wrong with a step shows in it


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rows(implementation, size, kind, dtype):
    x = (torch.randn(size) * torch.logspace(-3, 3, size[0])[:, None]).to(kind)
    if size[0]:
        x[0] = 0
    y, scale = implementation.fp8_cast_rows(x, dtype)
    assert scale.shape == (size[0], 1)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(y.float() * scale, x.float(), rtol=2**-4 if dtype == E4M3 else 2**-3, atol=1e-3 * 2**-9)
    if size[0]:
        assert float(scale[0]) == 1
        largest = (y.float() * scale).abs().amax(1)
        torch.testing.assert_close(largest, x.float().abs().amax(1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("transposed", [False, True])
def test_other_layouts_give_the_same_bits(implementation, transposed):
    x = torch.randn(64, 48).bfloat16()
    for view in (x.t(), x[:, 8:40], x[::2]):
        results = []
        for each in (view, view.contiguous()):
            amax = torch.tensor(0.0)
            y, yt = implementation.fp8_cast(each, torch.tensor(0.01), amax, E4M3, transposed)
            results.append((bits(y), bits(yt), amax))
            assert y.is_contiguous()
            assert yt.is_contiguous()
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
        by_rows = [implementation.fp8_cast_rows(each, E4M3) for each in (view, view.contiguous())]
        assert torch.equal(bits(by_rows[0][0]), bits(by_rows[1][0]))
        assert torch.equal(by_rows[0][1], by_rows[1][1])


def test_weights_of_any_layout_and_dtype(implementation):
    weights = [torch.randn(16, 32), torch.randn(48, 32).bfloat16().t()]
    casts = [torch.empty(w.shape, dtype=E4M3) for w in weights]
    scales = torch.empty(2)
    implementation.fp8_cast_weights(weights, scales, casts, [])
    for weight, cast, scale in zip(weights, casts, scales, strict=True):
        torch.testing.assert_close(cast.float() * scale, weight.float(), rtol=2**-4, atol=1e-3 * 2**-4)


@pytest.mark.parametrize("with_transposed", [False, True])
def test_weights(implementation, with_transposed):
    weights = [
        torch.randn(n, k).mul(spread).bfloat16() for n, k, spread in ((48, 32, 0.02), (7, 257, 3.0), (16, 16, 0.0))
    ]
    casts = [torch.empty(w.shape, dtype=E4M3) for w in weights]
    transposed = [torch.empty(w.shape[::-1], dtype=E4M3) for w in weights] if with_transposed else []
    scales = torch.empty(len(weights))
    implementation.fp8_cast_weights(weights, scales, casts, transposed)
    for number, (weight, cast) in enumerate(zip(weights, casts, strict=True)):
        expected, _ = fp8.cast(weight.float(), scales[number], torch.tensor(0.0), E4M3, False)
        assert torch.equal(bits(cast), bits(expected))
        largest = float(weight.float().abs().max())
        assert float(scales[number]) == pytest.approx(largest / 448 if largest else 1.0, rel=1e-6)
        if with_transposed:
            assert torch.equal(bits(transposed[number]), bits(cast.t()))


def test_scales_follow_the_largest_of_the_history(implementation):
    history, scale = torch.zeros(3, 4), torch.ones(4)
    largest = torch.tensor([448.0, 448.0, 57344.0, 448.0])
    steps = [[2.0, 0.0, 8.0, 1.0], [1.0, 0.0, 16.0, float("inf")], [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 4.0]]
    tops = [[2, 0, 8, 1], [2, 0, 16, 1], [2, 0, 16, 1], [1, 0, 16, 4]]
    for amax, top in zip(steps, tops, strict=True):
        given = torch.tensor(amax)
        implementation.fp8_update_scales(history, given, scale, largest, 1.0)
        assert given.tolist() == [0.0] * 4
        expected = [2 * t / m if t else 1.0 for t, m in zip(top, largest.tolist(), strict=True)]
        torch.testing.assert_close(scale, torch.tensor(expected), rtol=1e-6, atol=0.0)


# The schema's own test multiplies, which torch does not in FP8 on a CPU.
FP8_UTILS = ("test_autograd_registration", "test_faketensor")


def test_opcheck():
    ops = torch.ops.bertfast
    x, one = torch.randn(6, 16), torch.tensor(1.0)
    for transposed in (False, True):
        args = x, one, torch.tensor(0.0), E4M3, transposed
        torch.library.opcheck(ops.fp8_cast.default, args, test_utils=FP8_UTILS)
    torch.library.opcheck(ops.fp8_cast_rows.default, (x, E5M2), test_utils=FP8_UTILS)
    lists = [x], torch.empty(1), [torch.zeros(6, 16).to(E4M3)], [torch.zeros(16, 6).to(E4M3)]
    torch.library.opcheck(ops.fp8_cast_weights.default, lists, test_utils=FP8_UTILS)
    args = torch.ones(2, 3), torch.ones(3), torch.ones(3), torch.ones(3), 0.0
    torch.library.opcheck(ops.fp8_update_scales.default, args)
