"""Every wait, arrival, fence, copy and phase of the product kernel is needed: without one of them the interpreter finds a fault.

So the tests that run it there, and find none, say that what it does is in order.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from gluon_interpreter import mutants

from bertfast.ops.linear import gluon_launch, gluon_product
from bertfast.triton import launch

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="launchers run on tensors of the CPU")

TILE = {"n": 128, "k": 64, "stages": 2, "group": 2}
TOKENS, DEPTH, COLUMNS = 300, 136, 264  # three tile rows and columns, three steps
PROGRAMS = 2
MUTANTS = list(mutants.of(Path(gluon_product.__file__)))


def made(shape: tuple[int, ...], kind: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape).to(kind)


def plain() -> bool:
    x, weight, y = made((TOKENS, DEPTH)), made((COLUMNS, DEPTH)), made((TOKENS, COLUMNS))
    gluon_launch.product(gluon_product.PLAIN, TILE, x, weight, y)
    return torch.allclose(y.float(), x.float() @ weight.float().t(), rtol=0.01, atol=0.1)


def added() -> bool:
    dy, weight, total = made((TOKENS, DEPTH)), made((DEPTH, COLUMNS)), made((TOKENS, COLUMNS))
    expected = total.float() + dy.float() @ weight.float()
    gluon_launch.product(gluon_product.ADD, TILE, dy, weight, total, b_first=False)
    return torch.allclose(total.float(), expected, rtol=0.01, atol=0.1)


def gelu(with_pre: bool) -> bool:
    x, weight, bias = made((TOKENS, DEPTH)), made((COLUMNS, DEPTH)), made((COLUMNS,))
    y, pre = made((TOKENS, COLUMNS)), made((TOKENS, COLUMNS)) if with_pre else None
    gluon_launch.product(gluon_product.GELU, TILE, x, weight, y, pre=pre, bias=bias)
    product = x.float() @ weight.float().t()
    expected = torch.nn.functional.gelu(product + bias.float())
    stored = pre is None or torch.allclose(pre.float(), product, rtol=0.01, atol=0.1)
    return stored and torch.allclose(y.float(), expected, rtol=0.02, atol=0.2)


def dgelu() -> bool:
    dy, weight, bias = made((TOKENS, DEPTH)), made((DEPTH, COLUMNS)), made((COLUMNS,))
    pre, out = made((TOKENS, COLUMNS)), made((TOKENS, COLUMNS))
    sums = torch.empty(-(-TOKENS // gluon_product.BLOCK_M), COLUMNS)
    gluon_launch.product(gluon_product.DGELU, TILE, dy, weight, out, b_first=False, pre=pre, bias=bias, sums=sums)
    expected = torch.ops.aten.gelu_backward(dy.float() @ weight.float(), pre.float() + bias.float())
    return torch.allclose(out.float(), expected, rtol=0.02, atol=0.2) and torch.allclose(
        sums.sum(0), expected.sum(0), rtol=0.01, atol=1
    )


def weight_gradient() -> bool:
    dy, x, dweight, dbias = made((TOKENS, COLUMNS)), made((TOKENS, DEPTH)), made((COLUMNS, DEPTH)), made((COLUMNS,))
    gluon_launch.weight_product(TILE, dy, x, dweight, dbias)
    return torch.allclose(dweight.float(), dy.float().t() @ x.float(), rtol=0.01, atol=0.2) and torch.allclose(
        dbias.float(), dy.float().sum(0), rtol=0.01, atol=0.2
    )


CALLS: dict[str, Callable[[], bool]] = {
    "plain": plain,
    "added": added,
    "gelu": lambda: gelu(True),
    "gelu alone": lambda: gelu(False),
    "dgelu": dgelu,
    "weight gradient": weight_gradient,
}
# The calls that go through a function, where these are not all.
THROUGH = {
    "_apply_gelu": ("gelu", "gelu alone"),
    "_apply_dgelu": ("dgelu",),
    "_sum_rows": ("weight gradient",),
    "_read_slice": ("added", "dgelu"),
    "_store_slices": ("plain", "added"),
}


@pytest.fixture(autouse=True)
def few_programs(triton_ops, poisoned, monkeypatch):
    monkeypatch.setattr(launch, "multiprocessors", lambda device: PROGRAMS)


def found(name: str) -> bool:
    """Whether a call ends in a fault or in another result."""
    try:
        return not CALLS[name]()
    except (AssertionError, ZeroDivisionError):
        return True


def test_the_kernel_has_none():
    for name in CALLS:
        assert CALLS[name](), name


def test_every_rule_finds_a_place():
    counts = Counter(mutant.rule for mutant in MUTANTS)
    assert set(counts) == set(mutants.RULES)
    assert len(MUTANTS) > 50


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_planted_fault_is_found(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(gluon_product, "product_kernel", mutant.load(tmp_path).product_kernel)
    assert any(found(name) for _ in range(2) for name in THROUGH.get(mutant.function, CALLS))
