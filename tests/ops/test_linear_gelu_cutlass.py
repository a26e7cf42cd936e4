"""The candidate of linear_gelu by CUTLASS: on sm_90 with the library that was built there, elsewhere with a twin of it in torch.

With the twin, what passes is that launchers hand over the right tensors and make the right results of what comes back.
"""

import ctypes

import cutlass_twin
import pytest
import torch
import torch.nn.functional as F

from bertfast.testing import assert_within_budget, leaves

pytest.importorskip("triton", reason="Triton is not installed")
from bertfast import _cuda, _library, doctor
from bertfast.ops.linear import cutlass_launch
from bertfast.ops.linear_gelu import cutlass
from bertfast.triton import launch, repeats, verified

# Tokens, K, N: whole tiles; tails of tokens and columns; one block of K; a tile row of one token; more tiles than processors.
SIZES = [(128, 768, 1024), (203, 136, 264), (65, 8, 512), (1, 64, 1032), (4100, 264, 1032)]

# What passes on a GPU says that the kernels are right, so nothing may pass there that did not ask for them.
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs no GPU")


@pytest.fixture
def called(monkeypatch):
    """Names of the library's functions as they are called."""
    if torch.cuda.is_available():
        if (reason := _cuda.absence()) is not None:
            pytest.skip(reason)
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("the kernels are for sm_90 alone")
        names, bound = [], cutlass_launch._bound

        def noted(name, *args):
            names.append(name)
            return bound(name, *args)

        monkeypatch.setattr(cutlass_launch, "_bound", noted)
    else:
        names = cutlass_twin.put_in_place(monkeypatch)
    monkeypatch.setattr(cutlass_launch, "LEAST_FILLED", 0.0)
    return names


@pytest.fixture(params=["triton"])
def implementation(candidate_ops, called):
    return candidate_ops


def make(t, k, n, dtype=torch.bfloat16):
    return torch.randn(t, k).to(dtype), (2 * torch.randn(n, k) / k**0.5).to(dtype), torch.randn(n).to(dtype)


def stock(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias))


def exact(x, weight, bias):
    return stock(*(tensor.double() for tensor in (x, weight, bias)))


def transposed(weight):
    """The weight as a view of memory that lies [K, N], as inference keeps it."""
    return weight.t().contiguous().t()


@pytest.mark.parametrize("size", SIZES)
def test_forward(implementation, size, called):
    x, weight, _ = inputs = make(*size)
    y, pre = implementation.linear_gelu_fwd(*inputs, False)
    assert called == ["linear_gelu"]
    assert y.dtype == pre.dtype == torch.bfloat16
    assert_within_budget(y, stock(*inputs), exact(*inputs), "y")
    assert_within_budget(pre, F.linear(x, weight), F.linear(x.double(), weight.double()), "pre")


@pytest.mark.parametrize("size", SIZES)
def test_inference(implementation, size, called):
    if torch.cuda.is_available():
        implementation = _OnDevice()  # the fixture's copies to the GPU would make the view contiguous
    x, weight, bias = make(*size)
    y = implementation.linear_gelu_infer(x, transposed(weight), bias, False)
    assert called == ["linear_gelu_infer"]
    assert_within_budget(y, stock(x, weight, bias), exact(x, weight, bias), "y")


class _OnDevice:
    def linear_gelu_infer(self, x, weight, bias, tanh):
        moved = x.cuda(), weight.t().cuda().t(), bias.cuda(), tanh
        return cutlass.linear_gelu_infer(*moved).cpu()


@pytest.mark.parametrize("size", SIZES)
def test_gradient(implementation, size, called):
    t, k, n = size
    dy, weight, bias = torch.randn(t, k).bfloat16(), (torch.randn(k, n) / k**0.5).bfloat16(), torch.randn(n).bfloat16()
    pre = torch.randn(t, n).bfloat16()
    dpre, dbias = implementation.linear_dgelu(dy, weight, pre, bias, False)
    assert called == ["linear_dgelu"]

    def gradients(tensors, dy, weight):
        ready = leaves(tensors, tensors[0].dtype)
        F.gelu(ready[0] + ready[1]).backward(dy @ weight)
        return [tensor.grad for tensor in ready]

    theirs = gradients((pre, bias), dy, weight)
    oracle = gradients((pre.double(), bias.double()), dy.double(), weight.double())
    assert_within_budget(dpre, theirs[0], oracle[0], "dpre")
    assert_within_budget(dbias, theirs[1], oracle[1], "dbias")


def test_ends_are_those_of_eager(implementation):
    # The product is x itself: a weight of ones on the diagonal.
    infinity, largest = float("inf"), torch.finfo(torch.bfloat16).max
    values = torch.tensor([-largest, -40.0, 0.0, 0.5, 40.0, 1e30, largest, -1.0]).bfloat16()
    x, weight, bias = values.repeat(8, 1), torch.eye(8).bfloat16(), torch.zeros(8).bfloat16()
    y, pre = implementation.linear_gelu_fwd(x, weight, bias, False)
    assert torch.equal(pre, x)
    assert_within_budget(y, stock(x, weight, bias), exact(x, weight, bias), "y")
    bias[2], bias[5] = infinity, float("nan")
    y, pre = implementation.linear_gelu_fwd(x, weight, bias, False)
    assert torch.equal(pre, x)
    assert (y[:, 2] == infinity).all()
    assert y[:, 5].isnan().all()
    assert torch.isfinite(y[:, [0, 1, 3, 4, 6, 7]]).all()


def test_the_same_bits_again(implementation):
    inputs = make(4100, 264, 1032)
    first, again = (implementation.linear_gelu_fwd(*inputs, False) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    gradient = torch.randn(4100, 264).bfloat16(), inputs[1].t().contiguous(), first[1], inputs[2], False
    first, again = (implementation.linear_dgelu(*gradient) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "inputs",
    [
        (*make(64, 64, 64), True),
        (*make(64, 64, 64, torch.float32), False),
        (*make(64, 64, 64, torch.float16), False),
        (*make(64, 60, 64), False),  # rows of x do not begin on 16 bytes
        (*make(64, 64, 60), False),  # and of y
        (*make(0, 64, 64), False),
        (make(64, 64, 64)[0], transposed(make(64, 64, 64)[1]), make(64, 64, 64)[2], False),
    ],
    ids=["tanh", "float32", "float16", "K", "N", "empty", "transposed weight"],
)
def test_the_rest_is_the_owners(implementation, inputs, called):
    if torch.cuda.is_available():
        pytest.skip("what owners give is their tests' matter; which is called is the same everywhere")
    y, _ = implementation.linear_gelu_fwd(*inputs)
    assert called == []
    assert y.shape == (inputs[0].shape[0], inputs[1].shape[0])


def test_results_of_few_tiles_are_the_owners(implementation, called, monkeypatch):
    monkeypatch.setattr(cutlass_launch, "LEAST_FILLED", 0.5)
    inputs = make(8, 64, 64)
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    implementation.linear_gelu_fwd(*inputs, False)
    assert called == []


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        (
            "linear_gelu_fwd",
            [(64, 64), (128, 72), (128,)],
            "the product's depth are 64 by one tensor and 72 by another",
        ),
        ("linear_gelu_fwd", [(64, 64), (128, 64), (136,)], "the product's columns are 128 by one tensor and 136"),
        ("linear_dgelu", [(64, 64), (72, 128), (64, 128), (128,)], "the product's depth are 64 by one tensor and 72"),
        ("linear_dgelu", [(64, 64), (64, 128), (72, 128), (128,)], "the product's rows are 64 by one tensor and 72"),
        ("linear_dgelu", [(64, 64), (64, 128), (64, 128), (8,)], "the product's columns are 128 by one tensor and 8"),
    ],
)
def test_sizes_that_differ_are_refused(called, name, shapes, words):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in shapes]
    with pytest.raises(ValueError, match=f"{name}: {words}"):
        getattr(cutlass, name)(*tensors, False)
    assert called == []


def test_launches_are_repeated_on_other_tensors(called):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = ([tensor.to(device) for tensor in make(72, 64, 256)] for _ in range(2))
    with repeats.noting() as made:
        results = cutlass.linear_gelu_fwd(*one, False)
    repeat = repeats.repeat(made, [*one, *results], ())
    fresh = [torch.empty_like(result) for result in results]
    repeat(*other, *fresh)
    for mine, expected in zip(fresh, cutlass.linear_gelu_fwd(*other, False), strict=True):
        assert torch.equal(mine, expected)


@without_gpu
def test_what_the_library_refuses_is_an_error(monkeypatch):
    monkeypatch.setattr(cutlass_launch._cuda, "function", lambda *_: lambda *_: b"launch: a reason")
    monkeypatch.setattr(cutlass_launch._torch, "current_stream", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # as the device of a CPU tensor
    monkeypatch.setattr(cutlass_launch._cuda, "Launch", lambda *_: ctypes.c_int())
    with pytest.raises(RuntimeError, match=r"linear_gelu \(CUTLASS\): launch: a reason; tensors \(2, 3\)"):
        cutlass_launch.run("linear_gelu", (torch.zeros(2, 3),), (2, 3))


@without_gpu
def test_without_the_library_it_is_not_verified_and_doctor_says_why(monkeypatch, triton_ops):
    monkeypatch.setitem(_library._ABSENCES, "linear_gelu.cutlass", lambda: "libbertfast_cuda.so was not built: do so")
    entry = {"sources": verified.sources.here("linear_gelu.cutlass", 90)}
    table = {"90": {"linear_gelu.cutlass": {verified.triton_minor(): entry}}}
    monkeypatch.setattr(verified, "_table", lambda: table)
    assert not verified.verified("linear_gelu.cutlass", 90)
    assert verified.why_not("linear_gelu.cutlass", 90) == "libbertfast_cuda.so was not built: do so"
    row = doctor.gpu_candidate("linear_gelu.cutlass", 90)
    assert row["runs"] == "owner"
    assert row["why"].endswith(": libbertfast_cuda.so was not built: do so")
    monkeypatch.delitem(_library._ABSENCES, "linear_gelu.cutlass")
    assert verified.verified("linear_gelu.cutlass", 90)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph")
def test_captured(called):
    inputs = [tensor.cuda() for tensor in make(4100, 264, 1032)]
    expected = cutlass.linear_gelu_fwd(*inputs, False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cutlass.linear_gelu_fwd(*inputs, False)
    for result in captured:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))
