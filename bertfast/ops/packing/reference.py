"""Eager meaning of packing: which tokens of a padded batch are real, and moving their rows out and back."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    indices = mask.flatten().nonzero().flatten()
    cu_seqlens = F.pad(mask.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    return indices, cu_seqlens


def check_indices(indices: Tensor, rows: int) -> None:
    """IndexError naming the first index outside [0, rows)."""
    bad = (indices < 0) | (indices >= rows)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise IndexError(
            f"packing: index {int(indices[at])} at position {at} is outside the {rows} rows of the padded batch"
        )


def unpad(x: Tensor, indices: Tensor) -> Tensor:
    check_indices(indices, x.shape[0])
    return x.index_select(0, indices)


def repad(x: Tensor, indices: Tensor, rows: int) -> Tensor:
    check_indices(indices, rows)
    return x.new_zeros(rows, x.shape[1]).index_copy_(0, indices, x)
