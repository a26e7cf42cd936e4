"""All layers in training as one function of rows, parameters and seeds: the numbers of the layers called one by one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bertfast.nn import BertEncoder, seeds, training
from bertfast.nn.layout import Packed
from bertfast.nn.through import through

WIDTH = 32


def encoder(dropout=0.0, dtype=torch.float32) -> BertEncoder:
    torch.manual_seed(0)
    made = BertEncoder(2, WIDTH, 2, 64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return made.to(dtype).train()


def rows(dtype=torch.float32):
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    return x, torch.tensor([0, 13, 20], dtype=torch.int32)


def find(layers, x):
    return training.find(layers.layer, x, layers.layers(WIDTH).kind)


def results(layers, y, x):
    gradients = torch.autograd.grad(y.square().sum(), [x, *layers.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("read", [False, True])
def test_bits_of_layers_called_one_by_one(dtype, dropout, read):
    """With the seeds that these draw one after another."""
    autocast = dtype == "autocast"
    dtype = torch.float32 if autocast else dtype
    layers, (x, bounds) = encoder(dropout, dtype), rows(dtype)
    named = torch.tensor([0, 5, 13, 19]) if read else None
    both = []
    for at_once in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if at_once:
                trained = find(layers, x)
                assert trained.seeds == (6 if dropout else 0)
                drawn = seeds.draw(trained.seeds, x.device) if dropout else None
                y = trained.forward(x, bounds, 13, named, drawn)
            else:
                y = through(layers.layers(WIDTH), x, Packed(bounds, 13, named))
        both.append(results(layers, y, x))
    for one, two in zip(*both, strict=True):
        assert torch.equal(one, two)


def test_again_with_the_same_seeds():
    layers, (x, bounds) = encoder(0.2), rows()
    trained = find(layers, x)
    first, second = (seeds.draw(trained.seeds, x.device) for _ in range(2))
    y = [trained.forward(x, bounds, 13, None, drawn) for drawn in (first, first, second)]
    assert torch.equal(y[0], y[1])
    assert not torch.equal(y[0], y[2])


def test_other_parameters_in_their_places():
    layers, other, (x, bounds) = encoder(), encoder(), rows()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    given = replace(find(layers, x), parameters=find(other, x).parameters)
    expected = find(other, x).forward(x, bounds, 13, None, None)
    assert torch.equal(given.forward(x, bounds, 13, None, None), expected)


def _frozen(layers, x):
    layers.requires_grad_(False)
    return x.detach()


def _another_dtype(layers, x):
    layers.layer[1].double()
    return x


def _subclass(layers, x):
    layers.layer[0].output.dense = nn.utils.parametrizations.weight_norm(layers.layer[0].output.dense)
    return x


def _no_bias(layers, x):
    layers.layer[0].attention.self.key.bias = None
    return x


def _drops_everything(layers, x):
    layers.layer[0].output.dropout.p = 1.0
    return x


@pytest.mark.parametrize(
    "change", [_frozen, _another_dtype, _subclass, _no_bias, _drops_everything], ids=lambda c: c.__name__.strip("_")
)
def test_layers_that_must_be_called(change):
    layers, (x, _) = encoder(), rows()
    assert find(layers, x) is not None
    assert find(layers, change(layers, x)) is None


def test_without_gradients():
    layers, (x, _) = encoder(), rows()
    with torch.no_grad():
        assert find(layers, x) is None


def test_seeds():
    torch.manual_seed(1)
    drawn = seeds.draw(5, "cpu")
    assert (drawn.shape, drawn.dtype) == ((5, 2), torch.int64)
    assert int(drawn.min()) >= 0
    assert len(set(drawn.flatten().tolist())) == 10
