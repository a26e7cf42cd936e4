"""Training of a stack on fake CUDA tensors: neither what is captured nor what runs around a replay waits for the device."""

import pytest
import torch
from fake_cuda import fake_cuda
from pretend_streams import Cuda
from stack_cases import CAPTURED, FIRST, REPLAYED, WIDTH, encoder

from bertfast import _torch, graphs
from bertfast.graphs import cache, stack, training_call
from bertfast.graphs.inputs import Bounds
from bertfast.nn import halves
from bertfast.nn.layout import Packed

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_call_waits_for_nothing(monkeypatch, read, autocast):
    layers = encoder(0.1, torch.float32 if autocast else torch.bfloat16)
    with fake_cuda() as gpu:
        cuda = Cuda(monkeypatch)
        monkeypatch.setattr(cache, "stamp", lambda tensors: type("Always", (), {"holds": lambda self, tensors: True})())
        for name in ("is_watched", "is_transformed"):  # by the modes that fake tensors need
            monkeypatch.setattr(_torch, name, lambda: False)
        monkeypatch.setattr(stack, "_difference", lambda replayed, eager: None)
        for module in (stack, training_call):
            monkeypatch.setattr(module, "OPS", ())
        monkeypatch.setattr(torch.autograd, "grad", _grad)
        for kind in (Bounds, training_call.Rows):
            monkeypatch.setattr(kind, "__init__", _prepared(gpu, kind.__init__))
        with gpu.preparing():
            layers.cuda()
            x = torch.zeros(48, WIDTH, device="cuda", dtype=torch.float32 if autocast else torch.bfloat16)
            bounds = torch.zeros(3, dtype=torch.int32, device="cuda")
            rows = torch.zeros(7, dtype=torch.int64, device="cuda") if read else None
            dy = torch.zeros(7 if read else 48, WIDTH, device="cuda", dtype=x.dtype)
        monkeypatch.setattr(stack, "Tensor", type(x))  # fake tensors count as plain ones
        monkeypatch.setattr(halves, "_PLAIN", {type(x), *map(type, layers.parameters())})
        for how in (FIRST, CAPTURED, REPLAYED):
            gpu.ops.clear()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                outcome = stack.run(layers.layers(WIDTH).ready(x), x, Packed(bounds, 30, rows))
            assert outcome.how == how
            assert outcome.rows.shape == dy.shape
            before = gpu.ops.copy()
            outcome.rows.backward(dy)
            assert all(p.grad is not None for p in layers.parameters())
        del outcome
        graphs.clear(layers)
    assert cuda.log.count("replay 1") == 3, "to be compared, of the captured call, and of the replayed one"
    assert cuda.log.count("replay 2") == 3
    assert before == {"randint": 1, "_foreach_copy_": 3, "clamp": 1, "clone": 1}


def _grad(rows, leaves, dy):
    """Of leaves that have no gradient yet."""
    rows.backward(dy)
    return tuple(leaf.grad for leaf in leaves)


def _prepared(gpu, make):
    def init(*given, **options):
        with gpu.preparing():  # buffers are made once, from numbers of the host
            make(*given, **options)

    return init
