"""Hidden states of a batch's tokens to one embedding a text, each from its own rows alone: in order, so that an embedding's bits
do not depend on what stands beside it in the batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(hidden: Tensor, lengths: Tensor, modes: Sequence[str], skip: int = 0) -> Tensor:
    """[B, E * len(modes)] float32.

    Args:
        hidden: [B, S, E], any floating dtype; sums are made in float32.
        lengths: [B] int64 on a CPU, 1 to S, the first tokens of each row that are real.
        modes: of `recipe.POOLINGS`.
        skip: this many first tokens of each text are left out (a prompt's); a text without any others keeps its last.
    """
    skipped = lengths.sub(1).clamp(max=skip)
    return torch.cat([_pool(hidden, lengths, skipped, mode) for mode in modes], dim=1)


def _pool(hidden: Tensor, lengths: Tensor, skipped: Tensor, mode: str) -> Tensor:
    batch, width, size = hidden.shape
    if mode in ("cls", "lasttoken"):
        place = skipped if mode == "cls" else lengths - 1
        return hidden[torch.arange(batch), place.to(hidden.device)].float()
    counts = lengths - skipped
    ends = counts.cumsum(0)
    place = torch.arange(int(ends[-1])) - (ends - counts - skipped).repeat_interleave(counts)
    rows = (place + (torch.arange(batch) * width).repeat_interleave(counts)).to(hidden.device)
    table, begins = hidden.float().reshape(-1, size), (ends - counts).to(hidden.device)
    if mode in ("mean", "max"):
        return F.embedding_bag(rows, table, begins, mode=mode)
    if mode == "weightedmean":  # a token's place in the text, from 1, is its weight
        weights = (place + 1).float().to(hidden.device)
        totals = ((skipped + 1 + lengths) * counts).float() / 2
    else:
        weights, totals = None, counts.float().sqrt()
    sums = F.embedding_bag(rows, table, begins, mode="sum", per_sample_weights=weights)
    return sums / totals.to(hidden.device)[:, None]
