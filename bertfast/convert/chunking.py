"""chunk_size_feed_forward: stock's feed-forward over so many positions of every sequence at a time, which spares memory.

Each row's numbers stay the same. On a CPU the fused feed-forward cuts its rows as well, wherever it is called: in inference of all
layers at once C++ does, whatever the option says. Nothing on a GPU does, so that there the option leaves the layers to stock.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bertfast.nn.layout import Layout, Packed
from bertfast.nn.parts import below

_ABSENT = nn.Module()
# No part is smaller, the last one apart: products of a few rows, which stock's chunks of one position are in a small batch, are
# slow, and this many rows of BERT-base's middle are 7 MB. As many as csrc/cpu/encoder.cpp takes (kMiddleTokens).
LEAST_ROWS = 576


def reason(layer: Any, device: torch.device, seqlen: int | None) -> str | None:
    """What about the feed-forward's chunks keeps a layer from the fast path; `seqlen` None before a call."""
    holder, _, chunk = layer.family.chunk.rpartition(".")
    chunked = below(layer, holder, _ABSENT)
    if chunk in chunked.__dict__:
        return f"its {chunk} was replaced"
    size = getattr(chunked, "chunk_size_feed_forward", 0)
    if type(size) is not int:
        return f"chunk_size_feed_forward is {size!r}"
    if size <= 0:  # stock does not chunk
        return None
    if getattr(chunked, "seq_len_dim", None) != 1:
        return "chunk_size_feed_forward is set, along another dimension than that of positions"
    if device.type == "cuda":
        return "chunk_size_feed_forward is set, which no GPU kernel follows"
    return None if seqlen is None else length_reason(size, seqlen)


def length_reason(size: int, seqlen: int) -> str | None:
    """Why a batch of so many positions is stock's, which raises an error where chunks of `size` do not fill it; 0: no chunks."""
    if size and seqlen % size:
        return f"chunks of {size} positions do not fill {seqlen}, for which stock raises an error"
    return None


def size_of(layer: Any) -> int:
    """How many positions stock's chunks of a layer have for which there is no `reason`; 0 where it does not chunk."""
    chunked = below(layer, layer.family.chunk.rpartition(".")[0], _ABSENT)
    return max(0, getattr(chunked, "chunk_size_feed_forward", 0))


def common_size(layers: Iterable[Any]) -> int:
    """What a length must be a multiple of, for every layer's chunks to fill it; 0 where none chunks."""
    sizes = [size for size in map(size_of, layers) if size]
    return math.lcm(*sizes) if sizes else 0


def rows_of(layer: Any, x: torch.Tensor, layout: Layout) -> int | None:
    """How many rows of x, [T, E] or [B, S, E], the feed-forward takes at a time; None for all. No fewer than stock: the gradient of
    a weight is a sum over the parts, rounded at each."""
    size = size_of(layer)
    if not size:
        return None
    batch = layout.cu_seqlens.shape[0] - 1 if isinstance(layout, Packed) else x.shape[0]
    return max(batch * size, LEAST_ROWS)
