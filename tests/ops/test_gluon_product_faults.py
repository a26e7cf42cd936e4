"""Every wait, arrival, fence, copy and phase of the product kernel is needed: without one of them the interpreter finds a fault.

So the tests that run it there, and find none, say that what it does is in order.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from gluon_interpreter import mutants

from bertfast.ops.fp8_linear import gluon as gluon_fp8
from bertfast.ops.linear import gluon, gluon_launch
from bertfast.ops.linear.gluon_product import product_kernel
from bertfast.ops.linear_gelu import gluon as gluon_gelu
from bertfast.triton import launch, tables

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="launchers run on tensors of the CPU")

TOKENS, DEPTH, COLUMNS = 300, 136, 264  # three rows and columns of tiles, three steps
MUTANTS = list(mutants.of(product_kernel))


def made(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def same(result: Tensor, exact: Tensor) -> bool:
    return bool((result.double() - exact).abs().max() < 0.02 * exact.abs().max())


def plain() -> bool:
    x, weight = made(TOKENS, DEPTH), made(COLUMNS, DEPTH)
    return same(gluon.linear_fwd(x, weight, None), x.double() @ weight.double().t())


def added() -> bool:
    dy, weight, total = made(TOKENS, DEPTH), made(DEPTH, COLUMNS), made(TOKENS, COLUMNS)
    exact = total.double() + dy.double() @ weight.double()
    gluon.linear_add_dx(dy, weight, total)
    return same(total, exact)


def gelu() -> bool:
    x, weight, bias = made(TOKENS, DEPTH), made(COLUMNS, DEPTH), made(COLUMNS)
    y, pre = gluon_gelu.linear_gelu_fwd(x, weight, bias, False)
    exact = x.double() @ weight.double().t()
    return same(pre, exact) and same(y, F.gelu(exact + bias.double()))


def gelu_alone() -> bool:
    x, weight, bias = made(TOKENS, DEPTH), made(COLUMNS, DEPTH), made(COLUMNS)
    y = gluon_gelu.linear_gelu_infer(x, weight, bias, False)
    return same(y, F.gelu(x.double() @ weight.double().t() + bias.double()))


def dgelu() -> bool:
    dy, weight, bias, pre = made(TOKENS, DEPTH), made(DEPTH, COLUMNS), made(COLUMNS), made(TOKENS, COLUMNS)
    dpre, dbias = gluon_gelu.linear_dgelu(dy, weight, pre, bias, False)
    exact = torch.ops.aten.gelu_backward(dy.double() @ weight.double(), pre.double() + bias.double())
    return same(dpre, exact) and same(dbias, exact.sum(0))


def weight_gradient() -> bool:
    dy, x = made(TOKENS, COLUMNS), made(TOKENS, DEPTH)
    dweight, dbias = gluon.linear_dweight(dy, x, torch.float32, True)
    return same(dweight, dy.double().t() @ x.double()) and same(dbias, dy.double().sum(0))


def fp8_added() -> bool:
    """In FP8, each step's products added up in float32."""
    a, b = (made(rows, 3 * 128).to(torch.float8_e4m3fn) for rows in (TOKENS, COLUMNS))
    total, scale = made(TOKENS, COLUMNS), torch.tensor(0.5)
    exact = total.double() + (0.5 * a.double()) @ (0.5 * b.double()).t()
    gluon_fp8.fp8_linear_add(a, b, scale, scale, total)
    return same(total, exact)


CALLS: tuple[Callable[[], bool], ...] = (plain, added, gelu, gelu_alone, dgelu, weight_gradient, fp8_added)
# The calls that go through a function, where these are not all.
THROUGH = {
    "_apply_gelu": (gelu, gelu_alone),
    "_apply_dgelu": (dgelu,),
    "_sum_rows": (weight_gradient,),
    "_read_slice": (added, dgelu),
    "_store_slices": (plain, added),
}


@pytest.fixture(autouse=True)
def small(triton_ops, poisoned, monkeypatch):
    """Small tiles of few stages, few programs; nothing is left to owners."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 2)
    monkeypatch.setattr(gluon_launch, "LEAST_FILLED", 0.0)
    monkeypatch.setattr(gluon, "LEAST_TOKENS", 1)
    with tiles(128, 2):
        yield


def tiles(width: int, stages: int) -> AbstractContextManager[None]:
    entries = (*gluon.TABLES.entries, *gluon_gelu.TABLES.entries, *gluon_fp8.TABLES.entries)
    return tables.override({entry: {**entry.tile, "n": width, "stages": stages} for entry in entries})


def shows(call: Callable[[], bool]) -> bool:
    """Whether a call ends in a fault or in another result."""
    try:
        return not call()
    except (AssertionError, ZeroDivisionError):
        return True


@pytest.mark.parametrize(("programs", "width", "stages"), [(1, 128, 2), (2, 256, 3), (3, 128, 5), (5, 256, 2)])
def test_the_kernel_has_none(programs, width, stages, monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: programs)
    with tiles(width, stages):
        assert [call.__name__ for _ in range(2) for call in CALLS if not call()] == []


def test_every_rule_finds_a_place():
    counts = Counter(mutant.rule for mutant in MUTANTS)
    assert set(counts) == set(mutants.RULES)
    assert len(MUTANTS) > 50


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_planted_fault_is_found(mutant, monkeypatch):
    monkeypatch.setattr(mutant.original, "__code__", mutant.code)
    assert any(shows(call) for _ in range(2) for call in THROUGH.get(mutant.original.__name__, CALLS))
