"""linear_gelu's forms for the inside of a layer, as torch's product and the pass that runs for bias_gelu."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import _library


def linear_gelu_infer(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    return _library.resolved("bias_gelu_fwd", "CUDA")(F.linear(x, weight), bias, tanh)


def linear_dgelu(dy: Tensor, weight: Tensor, pre: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return _library.resolved("bias_gelu_bwd", "CUDA")(torch.mm(dy, weight), pre, bias, tanh)
