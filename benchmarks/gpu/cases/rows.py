"""Cases of dropout_add_norm: BERT-base and BERT-large rows, with and without dropout, every entry of the launch table once."""

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.case import Arguments, Case, randn, state, stock_peers

EPS = 1e-12


def _inputs(
    device: torch.device, rows: int, cols: int, dtype: torch.dtype, residual: torch.dtype
) -> list[torch.Tensor]:
    """x, bias, residual, weight, norm_bias."""
    return [
        randn(device, dtype, rows, cols),
        randn(device, residual, cols),
        randn(device, residual, rows, cols),
        randn(device, residual, cols),
        randn(device, residual, cols),
    ]


def _stock(x, bias, residual, weight, norm_bias, p):
    return F.layer_norm(residual + F.dropout(x + bias, p, training=p > 0), weight.shape, weight, norm_bias, EPS)


def _forward_peer(stock: Any, arguments: Arguments) -> Any:
    x, bias, residual, weight, norm_bias, _, p, _ = arguments
    return lambda: stock(x, bias, residual, weight, norm_bias, p)


def _backward_peer(stock: Any, arguments: Arguments) -> Any:
    dy, x, bias, residual, weight, _, _, p, _ = arguments
    leaves = [t.detach().requires_grad_() for t in (x, bias, residual, weight, torch.zeros_like(weight))]
    y = stock(*leaves, p)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def cases(rows: int, cols: int, dtype: torch.dtype, p: float, residual: torch.dtype | None = None) -> list[Case]:
    other = residual or dtype
    matrix, wide_matrix = rows * cols * dtype.itemsize, rows * cols * other.itemsize

    def forward(device: torch.device) -> Arguments:
        return (*_inputs(device, rows, cols, dtype, other), EPS, p, state(device) if p else None)

    def backward(device: torch.device) -> Arguments:
        x, bias, r, weight, _ = _inputs(device, rows, cols, dtype, other)
        mean = randn(device, torch.float32, rows)
        rstd = randn(device, torch.float32, rows).abs() + 0.5
        return randn(device, other, rows, cols), x, bias, r, weight, mean, rstd, p, state(device) if p else None

    shape = f"{rows}x{cols} p{p}" + (f" residual {str(residual).removeprefix('torch.')}" if residual else "")
    return [
        Case(
            op="dropout_add_norm_fwd",
            shape=shape,
            dtype=dtype,
            make=forward,
            bytes=matrix + 2 * wide_matrix + 3 * cols * other.itemsize + 8 * rows,
            peers=stock_peers(_stock, _forward_peer),
        ),
        Case(
            op="dropout_add_norm_bwd",
            shape=shape,
            dtype=dtype,
            make=backward,
            bytes=2 * matrix + 3 * wide_matrix + 5 * cols * other.itemsize + 8 * rows,
            peers=stock_peers(_stock, _backward_peer),
        ),
    ]


_B, _H, _F = torch.bfloat16, torch.float16, torch.float32
CASES: list[Case] = [
    *cases(65536, 768, _B, 0.1),
    *cases(65536, 768, _B, 0.0),
    *cases(65536, 1024, _B, 0.1),
    *cases(65536, 1024, _B, 0.0),
    *cases(8192, 768, _B, 0.1),
    *cases(8192, 1024, _B, 0.1),
    *cases(8192, 768, _B, 0.1, _F),
    *cases(8192, 768, _H, 0.1),
    *cases(8192, 768, _F, 0.1),
    *cases(128, 768, _B, 0.0),
    *cases(8192, 128, _B, 0.1),
    *cases(8192, 384, _B, 0.1),
    *cases(8192, 2048, _B, 0.1),
    *cases(8192, 4096, _B, 0.1),
]
