"""Hidden states of a batch's tokens to one embedding a text, each from its own rows alone: in order, so that an embedding's bits
do not depend on what stands beside it in the batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SINGLE = ("cls", "lasttoken")  # which take one token of each text


def place(mode: str, lengths: Tensor, skip: int = 0) -> Tensor:
    """[B] int64, which token of each text a mode of SINGLE takes; arguments as of `pool`."""
    return _skipped(lengths, skip) if mode == "cls" else lengths - 1


def _skipped(lengths: Tensor, skip: int) -> Tensor:
    return lengths.sub(1).clamp(max=skip)


def pool(hidden: Tensor, lengths: Tensor, modes: Sequence[str], skip: int = 0) -> Tensor:
    """[B, E * len(modes)] float32.

    Args:
        hidden: [B, S, E], any floating dtype; sums are made in float32.
        lengths: [B] int64 on a CPU, 1 to S, the first tokens of each row that are real.
        modes: of `recipe.POOLINGS`.
        skip: this many first tokens of each text are left out (a prompt's); a text without any others keeps its last.
    """
    return torch.cat([_pool(hidden, lengths, skip, mode) for mode in modes], dim=1)


def _pool(hidden: Tensor, lengths: Tensor, skip: int, mode: str) -> Tensor:
    batch, width, size = hidden.shape
    if mode in SINGLE:
        here = place(mode, lengths, skip).to(hidden.device)
        return hidden[torch.arange(batch, device=hidden.device), here].float()
    skipped = _skipped(lengths, skip)
    counts = lengths - skipped
    ends = counts.cumsum(0)
    place_in_text = torch.arange(int(ends[-1])) - (ends - counts - skipped).repeat_interleave(counts)
    rows = (place_in_text + (torch.arange(batch) * width).repeat_interleave(counts)).to(hidden.device)
    table, begins = hidden.float().reshape(-1, size), (ends - counts).to(hidden.device)
    if mode in ("mean", "max"):
        return F.embedding_bag(rows, table, begins, mode=mode)
    if mode == "weightedmean":  # a token's place in the text, from 1, is its weight
        weights = (place_in_text + 1).float().to(hidden.device)
        totals = ((skipped + 1 + lengths) * counts).float() / 2
    else:
        weights, totals = None, counts.float().sqrt()
    sums = F.embedding_bag(rows, table, begins, mode="sum", per_sample_weights=weights)
    return sums / totals.to(hidden.device)[:, None]
