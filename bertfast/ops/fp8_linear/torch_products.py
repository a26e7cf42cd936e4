"""fp8_linear by torch's scaled product: cuBLASLt's FP8 kernels on a GPU.

What torch does not take is multiplied in float32 (`reference`): no elements, columns of the result that are no multiple of 16, two
matrices in e5m2, a result by row scales that is not bfloat16.
"""

import torch
from torch import Tensor

from bertfast import _torch
from bertfast.ops.fp8_linear import reference

_MULTIPLE = 16  # of the inner and of the second dimension: what cuBLASLt takes
_NARROW = (torch.bfloat16, torch.float16)


def fp8_linear(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> Tensor:
    by_rows = bool(scale_a.dim() or scale_b.dim())
    both_e5m2 = a.dtype is b.dtype is torch.float8_e5m2
    if not a.numel() or b.shape[0] % _MULTIPLE or both_e5m2 or (by_rows and dtype is not torch.bfloat16):
        return reference.forward(a, b, scale_a, scale_b, bias, dtype, fast)
    if lacking := -a.shape[1] % _MULTIPLE:  # a weight's gradient, over any number of tokens; zeros add nothing
        a, b = _padded(a, lacking), _padded(b, lacking)
    if by_rows:
        scale_a = scale_a.expand(a.shape[0], 1).contiguous()
        scale_b = scale_b.reshape(1, -1).expand(1, b.shape[0]).contiguous()
    fused = bias is not None and dtype in _NARROW
    added = bias.to(dtype) if bias is not None and fused else None
    y = _torch.scaled_mm(a, b.t(), scale_a, scale_b, added, dtype, fast)
    return y if bias is None or fused else y + bias


def fp8_linear_add(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, total: Tensor) -> None:
    """In two passes: torch's scaled product has no addition."""
    total.add_(fp8_linear(a, b, scale_a, scale_b, None, torch.bfloat16, False))


def _padded(matrix: Tensor, columns: int) -> Tensor:
    """With so many columns of zeros more; as bytes, since torch does not pad FP8."""
    return torch.nn.functional.pad(matrix.view(torch.uint8), (0, columns)).view(matrix.dtype)
