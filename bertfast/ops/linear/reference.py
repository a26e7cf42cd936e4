"""y = x W^T + b. The product belongs to oneDNN, MKL or cuBLAS; this op exists so that the faster of them is asked."""

from torch import Tensor

from bertfast.ops import products


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return products.linear(x, weight, bias)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, has_bias: bool, needs_dx: bool, needs_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    absent = dy.new_empty(0)
    dx = products.matmul(dy, weight) if needs_dx else absent.clone()
    dweight = products.matmul(dy.t(), x) if needs_dweight else absent.clone()
    dbias = dy.sum(0) if has_bias else absent.clone()
    return dx, dweight, dbias
