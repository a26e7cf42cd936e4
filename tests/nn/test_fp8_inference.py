"""Inference in FP8 with row scales, beside the same maths composed of numbers that eager functions quantise."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from captured import captured_on_cpu
from half_cases import HEADS, E, at_once, encoder, rows

from bertfast.nn import fp8_inference, through
from bertfast.nn.device import Launched
from bertfast.nn.parts import parts_of
from bertfast.testing import rms_error


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with captured_on_cpu(), torch.no_grad():
        yield


def quantised(matrix):
    """Each row to e4m3 by its own largest magnitude, which becomes 448."""
    largest = matrix.float().abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / 448, 1.0)
    return (matrix.float() / scale).to(torch.float8_e4m3fn).float() * scale


def product(x, weight):
    return quantised(x) @ quantised(weight).t()


def composed(stack, x, layout):
    bounds = layout.cu_seqlens.tolist()
    for number, layer in enumerate(stack.layer):
        attention, mlp = parts_of(layer)
        projections = attention[:3]
        qkv = product(x, torch.cat([linear.weight for linear in projections]))
        qkv = qkv + torch.cat([linear.bias for linear in projections]) if projections[0].bias is not None else qkv
        heads, contexts = qkv.view(-1, 3, HEADS, E // HEADS), []
        for begin, end in pairwise(bounds):
            query, key, value = heads[begin:end].permute(1, 2, 0, 3)
            scores = query @ key.transpose(1, 2) * (E // HEADS) ** -0.5
            contexts.append((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
        context = torch.cat(contexts)
        if number == len(stack.layer) - 1 and layout.read is not None:
            context, x = context[layout.read], x[layout.read]
        x = attention.norm(attention.dense(context) + x)
        hidden = F.gelu(product(x, mlp.up.weight) + mlp.up.bias, approximate=layer.approximate)
        out = product(hidden, mlp.down.weight)
        x = mlp.norm(out + (0 if mlp.down.bias is None else mlp.down.bias) + x)
    return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("read", [False, True])
def test_parity(monkeypatch, read, act, bias):
    """In float32, so that nothing but FP8 rounds."""
    monkeypatch.setattr(through, "why_not", lambda *_: None)
    stack = encoder(act=act, bias=bias, depth=3).eval()
    stack.infer_fp8 = True
    x, layout = rows(read=read)
    x = x.detach()
    expected = composed(stack, x, layout)
    size = float(expected.square().mean().sqrt())
    assert rms_error(at_once(stack, x, layout), expected) < 2e-3 * size
    stack.infer_fp8 = False
    assert rms_error(at_once(stack, x, layout), expected) > 1e-2 * size


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    stack = encoder(depth=2).eval()
    stack = stack if autocast else stack.bfloat16()
    stack.infer_fp8 = True
    x, layout = rows(torch.float32 if autocast else torch.bfloat16)
    x = x.detach()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ready = stack.layers(E).ready(x)
        assert type(ready.at_once) is fp8_inference.Launched8
        rows_of_stack = at_once(stack, x, layout)
    assert rows_of_stack.dtype == x.dtype
    expected = composed(stack.float(), x.float(), layout)
    assert rms_error(rows_of_stack, expected) < 3e-2 * float(expected.square().mean().sqrt())


def test_no_row_loses_bits_to_a_large_one():
    """One row a hundred thousand times as large as the others, and one output of a weight: each is cast by its own scale."""
    x = torch.randn(9, E).bfloat16()
    x[4] *= 1e5
    stored, scale = fp8_inference.cast(x)
    for row, cast in zip(x.float(), stored.float() * scale, strict=True):
        # Three bits behind the leading one, and what is less than 2^-15 of the row's largest may go.
        assert float((cast - row).abs().max()) <= 2**-4 * float(row.abs().max())
        assert float((cast - row).norm()) < 0.04 * float(row.norm())


def test_no_sequence_loses_bits_to_a_large_one():
    """Rows of one sequence a hundred thousand times as large as those of the others: these come out as without it."""
    stack = encoder(depth=1).bfloat16().eval()
    x, layout = rows(torch.bfloat16)
    x = x.detach()
    stack.infer_fp8 = True
    alone = at_once(stack, x, layout).float()
    x[:5] *= 1e5  # the first sequence
    assert torch.equal(at_once(stack, x, layout).float()[5:], alone[5:])


def test_where_it_does_not_apply():
    stack = encoder().eval()
    stack.infer_fp8 = True
    x, _ = rows()
    assert type(stack.layers(E).ready(x.detach()).at_once) is Launched  # float32
    half = encoder().half().eval()
    half.infer_fp8 = True
    assert type(half.layers(E).ready(x.detach().half()).at_once) is Launched
