"""attention forward and backward against eager scaled_dot_product_attention on the same padded batch, one group a shape.

Every sequence has the full length here, so unpadding gains nothing: this is the kernel alone.
"""

import pytest
import torch
import torch.nn.functional as F

import bertfast.ops  # noqa: F401  defines the ops

# batch, S, H, D: BERT-base short, long and a single sentence; MiniLM; BERT-large.
SHAPES = [(8, 128, 12, 64), (2, 512, 12, 64), (1, 128, 12, 64), (8, 128, 12, 32), (4, 128, 16, 64)]
CASES = [(shape, dtype, p) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16) for p in (0.0, 0.1)]


def case_id(case) -> str:
    shape, dtype, p = case
    return f"{'x'.join(map(str, shape))}-{str(dtype).removeprefix('torch.')}-p{p}"


def bertfast_step(shape, dtype, p, backward):
    batch, seqlen, heads, size = shape
    qkv = torch.randn(batch * seqlen, 3, heads, size).to(dtype)
    cu_seqlens = torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32)
    state = torch.tensor([1, 2]) if p else None
    args = (cu_seqlens, seqlen, size**-0.5, p, state)
    out, lse = torch.ops.bertfast.attention_fwd(qkv, *args)
    if not backward:
        return lambda: torch.ops.bertfast.attention_fwd(qkv, *args)
    dout = torch.randn_like(out)
    return lambda: torch.ops.bertfast.attention_bwd(dout, qkv, out, lse, *args)


def eager_step(shape, dtype, p, backward):
    batch, seqlen, heads, size = shape
    qkv = torch.randn(batch, seqlen, 3, heads, size).to(dtype).permute(2, 0, 3, 1, 4)
    if not backward:
        return lambda: F.scaled_dot_product_attention(*qkv, dropout_p=p)
    leaves = [t.detach().requires_grad_() for t in qkv]
    out = F.scaled_dot_product_attention(*leaves, dropout_p=p)
    dout = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


@pytest.mark.parametrize("make", [bertfast_step, eager_step], ids=["bertfast", "eager"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_attention(benchmark, case, direction, make):
    benchmark.group = f"attention {direction} {case_id(case)}"
    benchmark(make(*case, direction == "backward"))
