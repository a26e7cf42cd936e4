"""attention at BERT's shapes: packed and padded, with and without dropout, every tile of the launch tables."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.case import Arguments, Case, randn, state
from bertfast.ops.attention.reference import additive

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


def _sdpa(backend: SDPBackend, batch: int, mask: bool, backward: bool) -> Callable[[Arguments], Callable[[], Any]]:
    """The same work by torch on equal lengths: q, k, v strided views of the same qkv, so no copy is counted."""

    def prepare(args: Arguments) -> Callable[[], Any]:
        dout, qkv = (args[0], args[1]) if backward else (None, args[0])
        p = args[-2]
        given = additive(args[-4], qkv.dtype) if mask else None
        qkv = qkv.detach().reshape(batch, -1, *qkv.shape[-3:]).requires_grad_(backward)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)

        def forward() -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, given, p, scale=args[-3])

        if not backward:
            return forward
        y, g = forward(), dout.reshape(batch, -1, *dout.shape[-2:]).transpose(1, 2)
        return lambda: torch.autograd.grad(y, qkv, g, retain_graph=True)

    return prepare


def padded_arguments(args: Arguments) -> Arguments:
    """A packed case's arguments as those of the padded op: what a batch costs whose padding is not taken out first."""
    *tensors, cu_seqlens, longest, scale, p, rng = args
    inside = torch.arange(longest, device=cu_seqlens.device) < cu_seqlens.diff()[:, None]

    def pad(t: torch.Tensor) -> torch.Tensor:
        full = t.new_zeros(*inside.shape, *t.shape[1:])
        full[inside] = t
        return full

    first = (pad(tensors[0]),) if len(tensors) == 1 else (pad(tensors[0]), pad(tensors[1]), None, None)
    return *first, inside[:, None, None, :], scale, p, rng


def _ragged(backend: SDPBackend, batch: int, backward: bool) -> Callable[[Arguments], Callable[[], Any]]:
    return lambda args: _sdpa(backend, batch, True, backward)(padded_arguments(args))


def _varlen(backward: bool) -> Callable[[Arguments], Callable[[], Any]]:
    """torch's own packed attention, flash without dropout; its default scale is ours."""

    def prepare(args: Arguments) -> Callable[[], Any]:
        from torch.nn.attention.varlen import varlen_attn

        cu_seqlens, longest = args[-5:-3]
        qkv = args[1 if backward else 0].detach().requires_grad_(backward)

        def forward() -> torch.Tensor:
            return varlen_attn(*qkv.unbind(1), cu_seqlens, cu_seqlens, longest, longest)

        if not backward:
            return forward
        y = forward()
        return lambda: torch.autograd.grad(y, qkv, args[0], retain_graph=True)

    return prepare


def _peers(batch: int, padded: bool, ragged: bool, p: float, backward: bool) -> dict[str, Any]:
    varlen = {"varlen flash": _varlen(backward)} if p == 0.0 and not padded else {}
    if ragged and not padded:
        return {f"{name}, padded": _ragged(backend, batch, backward) for name, backend in BACKENDS.items()} | varlen
    return {name: _sdpa(backend, batch, padded, backward) for name, backend in BACKENDS.items()} | varlen


def _case(
    lengths: list[int],
    heads: int,
    size: int,
    p: float,
    dtype: torch.dtype,
    *,
    backward: bool,
    padded: bool = False,
    label: str | None = None,
) -> Case:
    tokens, longest = sum(lengths), max(lengths)
    batch, rows = len(lengths), sum(lengths) if not padded else len(lengths) * max(lengths)
    shape = (batch, longest) if padded else (tokens,)

    def make(device: torch.device) -> Arguments:
        qkv = randn(device, dtype, *shape, 3, heads, size)
        if padded:
            ends = torch.tensor(lengths, device=device)[:, None, None, None]
            given = (torch.arange(longest, device=device) < ends,)
        else:
            given = (torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device), longest)
        settings = (*given, size**-0.5, p, state(device) if p else None)
        if not backward:
            return qkv, *settings
        lse_shape = (batch, heads, longest) if padded else (heads, tokens)
        if device.type == "meta":
            out, lse = qkv.new_empty(*shape, heads, size), qkv.new_empty(lse_shape, dtype=torch.float32)
        else:
            forward = torch.ops.bertfast.attention_padded_fwd if padded else torch.ops.bertfast.attention_fwd
            out, lse = forward(qkv, *settings)
        return randn(device, dtype, *shape, heads, size), qkv, out, lse, *settings

    work = batch * longest**2 if padded else sum(n * n for n in lengths)
    row_bytes = heads * size * dtype.itemsize
    return Case(
        op=f"attention{'_padded' if padded else ''}_{'bwd' if backward else 'fwd'}",
        shape=f"{label or f'{batch}x{longest}'}x{heads}x{size} p{p}",
        dtype=dtype,
        make=make,
        # qkv, out and lse; backward reads dout as well and writes dqkv.
        bytes=rows * (row_bytes * (8 if backward else 4) + heads * 4),
        flops=(10 if backward else 4) * work * heads * size,
        peers=_peers(batch, padded, len(set(lengths)) > 1, p, backward),
        dot=dtype != torch.float32 and (True if longest > 32 else "any"),
    )


# Lengths that fall off as those of sentences do, without a random generator: 16 to 128, and 32 to 512.
SHORT = [16 + 112 * (i * 37 % 128) ** 2 // 127**2 for i in range(512)]
LONG = [32 + 480 * (i * 37 % 128) ** 2 // 127**2 for i in range(128)]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: list[Case] = []
for _backward in (False, True):
    for _p in (0.0, 0.1):
        CASES += [
            _case([128] * 512, 12, 64, _p, BF16, backward=_backward),
            _case([128] * 64, 12, 64, _p, BF16, backward=_backward),
            _case([128] * 512, 16, 64, _p, BF16, backward=_backward),
            _case([512] * 128, 12, 64, _p, BF16, backward=_backward),
            _case([512] * 16, 16, 64, _p, BF16, backward=_backward),
            _case([384] * 64, 12, 64, _p, BF16, backward=_backward),
            _case(SHORT, 12, 64, _p, BF16, backward=_backward, label="ragged128"),
            _case(LONG, 12, 64, _p, BF16, backward=_backward, label="ragged512"),
            _case(SHORT, 12, 64, _p, BF16, backward=_backward, padded=True, label="padded128"),
            _case(LONG, 12, 64, _p, BF16, backward=_backward, padded=True, label="padded512"),
        ]
    CASES += [
        _case([128] * 512, 12, 32, 0.1, BF16, backward=_backward),
        _case([512] * 128, 12, 32, 0.1, BF16, backward=_backward),
        _case([128] * 64, 8, 128, 0.1, BF16, backward=_backward),
        _case([512] * 16, 8, 128, 0.1, BF16, backward=_backward),
        _case([64] * 128, 12, 64, 0.1, BF16, backward=_backward),
        _case([64] * 128, 8, 128, 0.1, BF16, backward=_backward),
        _case([32] * 256, 12, 64, 0.1, BF16, backward=_backward),
        _case([128] * 64, 12, 64, 0.1, FP16, backward=_backward),
        _case([32] * 64, 12, 64, 0.1, FP32, backward=_backward),
        _case([64] * 64, 12, 64, 0.1, FP32, backward=_backward),
        _case([128] * 64, 12, 64, 0.1, FP32, backward=_backward),
        _case([128] * 64, 8, 128, 0.1, FP32, backward=_backward),
        _case([16], 12, 64, 0.0, BF16, backward=_backward),
        _case([5, 16], 12, 64, 0.0, BF16, backward=_backward, padded=True, label="padded16"),
    ]
