"""A whole layer through the Triton launchers equals the same layer through the CPU's owners: dtypes, layouts and seeds fit."""

import pytest
import torch

from bertfast import _library
from bertfast.nn.core import attention_block, mlp_block
from bertfast.nn.layout import Packed, Padded
from bertfast.nn.modules import BertLayer
from bertfast.nn.parts import parts_of
from bertfast.testing import rms_error

E, F, H = 64, 128, 2


@pytest.fixture
def layer():
    return parts_of(BertLayer(E, H, F))


def run(layer, x, layout, p):
    torch.manual_seed(3)
    x = attention_block(x, layout, layer.attention, H, attention_p=p, hidden_p=p, use_prepack=False)
    return mlp_block(x, layer.mlp, hidden_p=p, use_prepack=False)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_layer(layer, triton_ops, monkeypatch, packed, p):
    x = torch.randn(2, 17, E)
    layout = Padded((torch.arange(17) < torch.tensor([[17], [5]]))[:, None, None])
    if packed:
        x = x.flatten(0, 1)[:22]
        layout = Packed(torch.tensor([0, 17, 22], dtype=torch.int32), 17)
    expected = run(layer, x, layout, p)
    launchers = {name: getattr(triton_ops, name) for name in _library.owners("CUDA")}
    monkeypatch.setattr(_library, "_OVERLOADS", launchers)
    found = run(layer, x, layout, p)
    assert rms_error(found, expected.double()) < 1e-6
    assert found.dtype == expected.dtype
