"""What the functions of csrc/cuda/products.h mean, in torch: it stands in for the library where there is none, or no sm_90.

So the launchers run on CPU tensors: which of them take what, in which order tensors go to the library, and what becomes of what it
leaves behind. The C++ is judged on a GPU alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.ops.linear import cutlass_launch
from bertfast.ops.linear_gelu import reference

BLOCK_M, BLOCK_N = 64, 256


def gelu(v: Tensor) -> Tensor:
    return v * torch.special.ndtr(v)  # torch's own makes NaN of infinity on a CPU


def linear_gelu(tensors: Sequence[Tensor], tokens: int, columns: int, depth: int) -> None:
    x, weight, bias, y, pre = tensors
    assert (x.shape, weight.shape, y.shape) == ((tokens, depth), (columns, depth), (tokens, columns))
    product = F.linear(x.float(), weight.float())
    pre.copy_(product)
    y.copy_(gelu(product + bias.float()))


def linear_gelu_infer(tensors: Sequence[Tensor], tokens: int, columns: int, depth: int) -> None:
    x, weight, bias, y = tensors
    memory = weight.as_strided((depth, columns), (columns, 1))  # the library sees memory alone
    y.copy_(gelu(x.float() @ memory.float() + bias.float()))


def linear_dgelu(tensors: Sequence[Tensor], tokens: int, columns: int, depth: int) -> None:
    dy, weight, pre, bias, dpre, sums = tensors
    assert weight.shape == (depth, columns)
    gradient = (dy.float() @ weight.float()) * reference._gelu_gradient(pre.float() + bias.float(), False)
    dpre.copy_(gradient)
    whole = F.pad(gradient, (0, -columns % BLOCK_N, 0, -tokens % BLOCK_M))
    assert sums.shape == (len(whole) // BLOCK_M, whole.shape[1])
    sums.copy_(whole.unflatten(0, (-1, BLOCK_M)).sum(1))


def linear_dweight(tensors: Sequence[Tensor], tokens: int, rows: int, columns: int) -> None:
    dy, x, dweight = tensors
    assert (dy.shape, x.shape) == ((tokens, rows), (tokens, columns))
    dweight.copy_(dy.float().t() @ x.float())


def put_in_place(monkeypatch) -> list[str]:
    """Let launchers take CPU tensors and call these functions; their names are listed as they are called."""
    called: list[str] = []

    def bound(name, device, pointers, sizes, workspace):
        def call(tensors):
            assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
            called.append(name)
            globals()[name](tensors, *sizes)

        return call

    monkeypatch.setattr(cutlass_launch, "DEVICE", "cpu")
    monkeypatch.setattr(cutlass_launch, "_bound", bound)
    monkeypatch.setattr(cutlass_launch._cuda, "absence", lambda: None)
    monkeypatch.setattr(cutlass_launch._cuda, "dweight_workspace", lambda *sizes: 16)
    return called
