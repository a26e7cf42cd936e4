"""A small stack of layers in training, calls of it, and what they leave behind."""

from typing import NamedTuple

import torch
from torch import Tensor

from bertfast.graphs import stack
from bertfast.graphs.cache import Limits
from bertfast.nn import BertEncoder
from bertfast.nn.layout import Packed
from bertfast.nn.through import through

WIDTH = 32
FIRST, CAPTURED, REPLAYED = "eager: first call of its bucket", "captured", "replayed"
HOWS = (FIRST, CAPTURED, REPLAYED, REPLAYED)  # of the first calls of a bucket
LENGTHS = (30, 18)  # 48 rows, which are a bucket's: bits are those of the eager call


def encoder(dropout: float = 0.0, dtype=torch.float32, layers: int = 2) -> BertEncoder:
    torch.manual_seed(0)
    made = BertEncoder(
        layers, WIDTH, 2, 64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, layer_norm_eps=1e-12
    )
    return made.to(dtype).train()


def rows_of(lengths=LENGTHS, seed: int = 0, dtype=torch.float32, grad: bool = True) -> tuple[Tensor, Packed]:
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    x = torch.randn(int(bounds[-1]), WIDTH, generator=generator).to(dtype).requires_grad_(grad)
    return x, Packed(bounds, max(lengths))


def eagerly(layers: BertEncoder, x: Tensor, layout: Packed) -> Tensor:
    return through(layers.layers(WIDTH).ready(x), x, layout)


def run(layers: BertEncoder, x: Tensor, layout: Packed, limits: Limits | None = None) -> stack.Outcome:
    return stack.run(layers.layers(WIDTH).ready(x), x, layout, Limits() if limits is None else limits)


class Step(NamedTuple):
    """Rows, and the gradients of x and of the parameters by name."""

    rows: Tensor
    dx: Tensor | None
    gradients: dict[str, Tensor]


def loss_of(rows: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, rows.numel()).view(rows.shape).to(rows.dtype)
    return (rows * weights).sum() + rows.square().mean()


def step(layers: BertEncoder, x: Tensor, layout: Packed, *, captured: bool, how: str | None = None) -> Step:
    """One forward and backward from one random state; the gradients of parameters begin at zero."""
    layers.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    if captured:
        rows, said = run(layers, x, layout)
        assert how is None or said == how
    else:
        rows = eagerly(layers, x, layout)
    loss_of(rows).backward()
    found = {name: p.grad.clone() for name, p in layers.named_parameters() if p.grad is not None}
    return Step(rows.detach(), None if x.grad is None else x.grad.clone(), found)


def captured_encoder(**options) -> BertEncoder:
    """A stack whose next call of LENGTHS is a replay."""
    layers = encoder(**options)
    for how in HOWS[:3]:
        step(layers, *rows_of(dtype=options.get("dtype", torch.float32)), captured=True, how=how)
    return layers


def assert_equal(one: Step, two: Step) -> None:
    """To the bit."""
    assert torch.equal(one.rows, two.rows)
    assert (one.dx is None) == (two.dx is None)
    assert one.dx is None or torch.equal(one.dx, two.dx)
    assert one.gradients.keys() == two.gradients.keys()
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient, two.gradients[name]), name


def assert_close(one: Step, two: Step, tolerance: float = 1e-5) -> None:
    """As far as sums over rows in another order allow."""
    assert one.gradients.keys() == two.gradients.keys()
    pairs = [(one.rows, two.rows), *((gradient, two.gradients[name]) for name, gradient in one.gradients.items())]
    if one.dx is not None and two.dx is not None:
        pairs.append((one.dx, two.dx))
    scale = max(float(other.abs().max()) for _, other in pairs)
    for value, other in pairs:
        assert value.shape == other.shape
        assert float((value - other).abs().max()) <= tolerance * max(scale, 1.0)
