"""linear_cross_entropy at 15 % masked tokens of 8192 and 65536, BERT's vocabulary of 30522; 20 of one short sequence.
Once with a frozen decoder, whose gradients are not made.

Bytes count inputs and outputs, the kept logits among them, not the logits between product and softmax. Products are
cuBLAS's, so no tensor-core code is looked for in the kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn, stock_peers
from bertfast.ops.masked_lm_loss.reference import padded

VOCABULARY = 30522


def _inputs(device: torch.device, dtype: torch.dtype, rows: int, size: int) -> Arguments:
    labels = torch.randint(0, VOCABULARY, (rows,), device=device)
    weight = randn(device, dtype, VOCABULARY, size) / size**0.5
    return randn(device, dtype, rows, size), weight, randn(device, dtype, VOCABULARY), labels


def _stock(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), labels, reduction="none")


def _forward_peer(stock: Callable[..., Any], args: Arguments) -> Callable[[], Any]:
    return lambda: stock(*args[:4])


def _backward_peer(stock: Callable[..., Any], args: Arguments) -> Callable[[], Any]:
    dloss, x, weight, bias, labels, *_ = args
    tensors = [t.detach().requires_grad_(needed) for t, needed in zip((x, weight, bias), args[-3:], strict=True)]
    leaves = [t for t in tensors if t.requires_grad]
    loss = stock(*tensors, labels)
    return lambda: torch.autograd.grad(loss, leaves, dloss.to(loss.dtype), retain_graph=True)


def _cases(rows: int, size: int, dtype: torch.dtype, keep: bool, frozen: bool) -> list[Case]:
    def forward(device: torch.device) -> Arguments:
        return *_inputs(device, dtype, rows, size), keep

    def backward(device: torch.device) -> Arguments:
        inputs = _inputs(device, dtype, rows, size)
        _, lse, _, kept = torch.ops.bertfast.linear_cross_entropy_fwd(*inputs, keep)
        return torch.full((rows,), 1 / rows, device=device), *inputs, lse, kept, True, not frozen, not frozen

    element = dtype.itemsize
    inputs = element * (rows * size + VOCABULARY * size + VOCABULARY) + 8 * rows
    kept = element * rows * padded(VOCABULARY) if keep else 0
    product = 2 * rows * size * VOCABULARY
    shape = f"{rows}x{size}x{VOCABULARY}{' keep' if keep else ''}"
    written = element * rows * size if frozen else inputs
    cases = [
        # Below the default: narrow looks at the bias in the tail, and at the second glance at the lane of the maximum.
        Case(
            "linear_cross_entropy_fwd",
            shape,
            dtype,
            forward,
            bytes=inputs + kept + 16 * rows,
            flops=product,
            peers=stock_peers(_stock, _forward_peer),
            wide=0.45,
        ),
        Case(
            "linear_cross_entropy_bwd",
            f"{shape}{' frozen' if frozen else ''}",
            dtype,
            backward,
            bytes=inputs + written + kept,
            flops=(3 - keep - frozen) * product,
            peers=stock_peers(_stock, _backward_peer),
        ),
    ]
    return cases[1:] if frozen else cases


CASES: list[Case] = [
    case
    for rows, size, dtype, keep, frozen in (
        (20, 768, torch.bfloat16, True, False),
        (1229, 768, torch.bfloat16, True, False),
        (1229, 768, torch.float16, True, False),
        (1229, 768, torch.float32, True, False),
        (1229, 768, torch.bfloat16, True, True),
        (1229, 1024, torch.bfloat16, True, False),
        (9830, 768, torch.bfloat16, True, False),
        (9830, 768, torch.bfloat16, False, False),
        (9830, 1024, torch.bfloat16, True, False),
    )
    for case in _cases(rows, size, dtype, keep, frozen)
]
