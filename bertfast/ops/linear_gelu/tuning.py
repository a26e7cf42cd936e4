"""Launch tables of linear_gelu, and which of its two forms owns a shape. Nothing here was measured on a GPU: all predicted."""

import torch
from torch import Tensor

# 1,024 elements of 16-bit types in 16-byte pieces are one row of 128 threads; 4 rows keep four such loads of a thread in
# flight and share one load of the bias. F = 3072 and 4096 are whole blocks of 1,024.
BIAS_GELU_FORWARD = {"ROWS": 4, "COLS": 1024}
# As bertfast.triton.columns: a warp a row, two rows a warp in flight; 16 float32 sums a thread.
BIAS_GELU_BACKWARD = {"ROWS": 8, "COLS": 256}


def forward_owner(x: Tensor, weight: Tensor) -> str:
    """ "split" or "fused" for linear_gelu_fwd.

    Split everywhere: the fused kernel has never run on a GPU. A committed result that shows where it wins changes this.
    """
    return "split"


def fused_takes(*tensors: Tensor) -> bool:
    """Whether the fused kernels take these: one 16-bit dtype, rows and base addresses on 16 bytes, something to do.

    float32 is declined: its parity budget asks for exact products, which no tensor core makes.
    """
    dtype = tensors[0].dtype
    return dtype in (torch.float16, torch.bfloat16) and all(
        t.dtype == dtype and t.is_contiguous() and t.shape[-1] % 8 == 0 and t.data_ptr() % 16 == 0 and t.numel() > 0
        for t in tensors
    )
