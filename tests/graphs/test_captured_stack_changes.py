"""A captured stack whose model is changed between calls, or copied."""

import copy

import pytest
import torch
from stack_cases import (
    FIRST,
    REPLAYED,
    assert_equal,
    captured_encoder,
    rows_of,
    run,
    step,
)

from bertfast import graphs


def _freeze(layers):
    layers.layer[0].requires_grad_(False)


def _freeze_biases(layers):
    for name, p in layers.named_parameters():
        p.requires_grad_(not name.endswith("bias"))


def _edit(layers):
    layers.layer[1].output.dense.weight.data.mul_(3)


def _replace(layers):
    layers.layer[1].output.dense.weight.data = layers.layer[1].output.dense.weight.data * 3


def _new_parameter(layers):
    linear = layers.layer[0].attention.self.query
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 2)


def _round_trip(layers):
    layers.double().float()


def _eps(layers):
    layers.layer[0].output.LayerNorm.eps = 0.5


def _rate(layers):
    layers.layer[0].output.dropout.p = 0.5


def _shared(layers):
    layers.layer[1].intermediate = layers.layer[0].intermediate


CHANGES = [_freeze, _freeze_biases, _edit, _replace, _new_parameter, _round_trip, _eps, _rate, _shared]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_changes_of_a_model(device, change):
    layers = captured_encoder()
    change(layers)
    for number in range(4):
        x, layout = rows_of(seed=number)
        assert_equal(step(layers, x, layout, captured=True), step(layers, x, layout, captured=False))
    assert run(layers, *rows_of()).how == REPLAYED


def test_frozen_layers_and_back(device):
    layers = captured_encoder()
    for frozen in (True, False, True, False):
        layers.layer[0].requires_grad_(not frozen)
        for _ in range(3):
            x, layout = rows_of()
            found = step(layers, x, layout, captured=True)
            assert_equal(found, step(layers, x, layout, captured=False))
        assert any(name.startswith("layer.0") for name in found.gradients) != frozen
    assert graphs.memory(layers).graphs == 2


def test_copies_are_not_shared(device):
    layers = captured_encoder()
    other = copy.deepcopy(layers)
    assert run(other, *rows_of()).how == FIRST
    assert graphs.memory(other).graphs == 0
