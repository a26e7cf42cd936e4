"""The input of a model, packed or padded, as the one thing the layers see: rows of real tokens and where sequences begin.

A padded batch is packed here, before the embeddings. Of a packed one with tail padding, the tail is cut off where that needs no
wait for a device; elsewhere it stays, in sequences of its own, so that shapes do not depend on data.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast import ops
from bertfast.nn.layout import Packed

_IDS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Reading:
    """Which rows of the last layer anybody reads, and where they are among what it returns.

    Attributes:
        rows: [R] int64, to be given to the encoder; None for all of them.
        first: [B] int64, places of each sequence's first token in the encoder's output; of any row where it has none.
        masked: [M] int64, places of the masked tokens there; negative for empty slots, R for positions past the input.
    """

    rows: Tensor | None
    first: Tensor | None = None
    masked: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """[N] to [R]: the values of the rows that are read."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Where the sequences of packed rows begin, and where the rows stand in the input.

    Attributes:
        rows: N, packed rows, those past the sequences included.
        cu_seqlens: [B + 1] int32, bounds of the batch's sequences, from 0 to N or less.
        bounds: [B' + 1] int32, the same with the rows past them in further sequences, from 0 to N.
        max_seqlen: a bound on the longest sequence.
        shape: of the input, (T,) or (B, S).
        exact: whether there are no rows past the sequences, so that bounds are cu_seqlens.
        packing: of a padded batch whose padding was taken out.
    """

    rows: int
    cu_seqlens: Tensor
    bounds: Tensor
    max_seqlen: int
    shape: tuple[int, ...]
    exact: bool
    packing: ops.Packing | None = None

    @property
    def sequences(self) -> int:
        """B, empty sequences included."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """[B] int64, tokens of each sequence."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).to(torch.int64)

    @property
    def first(self) -> Tensor:
        """[B] int64, the row of each sequence's first token; some row or other for a sequence without any."""
        return self.cu_seqlens[:-1].to(torch.int64).clamp(max=self.rows - 1)

    def places(self, read: Tensor | Literal["first"] | None) -> Tensor | None:
        """Numbers of the rows that are read, [R] int64; "first" stands for each sequence's first."""
        return self.first if isinstance(read, str) else read

    def layout(self, read: Tensor | None = None) -> Packed:
        """What the layers need to know; read: [R] int64, the rows of the last layer that anybody reads."""
        return Packed(self.bounds, self.max_seqlen, read)

    def first_of(self, rows: Tensor) -> Tensor:
        """[B, E], each sequence's first of rows [N, E]; some row or other for a sequence without any."""
        if self.packing is None and len(self.shape) == 2:
            return rows.view(*self.shape, -1)[:, 0].contiguous()
        return rows.index_select(0, self.first)  # whose gradient sorts nothing on a GPU

    def take(self, values: Tensor) -> Tensor:
        """[N, ...], the rows of values [B, S, ...] of a padded batch."""
        return values.flatten(0, 1) if self.packing is None else ops.unpad(values, self.packing)

    def restore(self, rows: Tensor, read: Tensor | Literal["first"] | None = None) -> Tensor:
        """[N, ...] in the input's layout, [T, ...] or [B, S, ...]; zeros at padding that was taken out.

        read: [R], which rows of a padded batch are given, where these are not all; zeros at the others too. "first" for each
            sequence's first, where that is position 0 in all.
        """
        if isinstance(read, str):
            whole = rows.new_zeros(*self.shape, *rows.shape[1:])
            whole[:, 0] = rows
            return whole
        packing = self.packing
        if read is not None:
            places = read if packing is None else packing.indices[read]
            packing = ops.Packing(places, self.cu_seqlens, self.max_seqlen, *self.shape)
        if packing is not None:
            return ops.repad(rows, packing)
        if rows.shape[0] < self.shape[0] and len(self.shape) == 1:
            rest = self.shape[0] - rows.shape[0]
            return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, rest))
        return rows.view(*self.shape, *rows.shape[1:])

    def of(self, values: Tensor, outside: int) -> Tensor:
        """[N], the rows of int64 `values` that the caller gave in the input's layout; `outside` past the last sequence."""
        flat = values.reshape(-1)
        if self.packing is not None:
            return flat[self.packing.indices]
        flat = flat[: self.rows]
        if self.exact:
            return flat
        return torch.where(torch.arange(flat.shape[0], device=flat.device) < self.cu_seqlens[-1], flat, outside)

    def row(self, places: Tensor) -> Tensor:
        """Rows of int64 `places` among the flattened input: negative for none, N for those past the input."""
        total, rows = self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1), self.rows
        if self.packing is None:
            row = torch.where(places < rows, places, -1)
        else:
            indices = self.packing.indices
            row = torch.searchsorted(indices, places.clamp(0, total - 1)).clamp(max=rows - 1)
            row = torch.where((places >= 0) & (indices[row] == places), row, -1)
        return torch.where(places >= total, rows, row)

    def reading(self, masked: Tensor | None = None, *, first: bool = True) -> Reading:
        """What is to be read where nobody reads other rows than each sequence's first and the `masked` ones.

        masked: [M] int64, rows as `row` gives them.
        """
        count = self.sequences if first else 0
        parts = [self.first] if first else []
        if masked is not None:
            parts.append(masked.clamp(0, self.rows - 1))
        read = torch.cat(parts)
        if read.shape[0] == 0:  # a layer of no rows is of no use to anybody, but its parameters get their zeros
            read = read.new_zeros(1)
        if torch.compiler.is_compiling() or read.device.type != "cpu":
            rows, places = read, torch.arange(read.shape[0], device=read.device)
        else:
            rows, places = torch.unique(read, return_inverse=True)
        if masked is not None:
            place = torch.where(masked < 0, -1, places[count : count + masked.shape[0]])
            masked = torch.where(masked >= self.rows, rows.shape[0], place)
        return Reading(rows, places[:count] if first else None, masked)


@dataclass(frozen=True, kw_only=True)
class Tokens(Sequences):
    """The input itself: ids of the rows, in sequences as `Sequences` has them.

    Attributes:
        input_ids, position_ids: [N], int64 or int32.
        token_type_ids: [N] likewise; None for zeros.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None = None


def arrange(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    positions: int,
) -> Tokens:
    """The input of a model with so many `positions`, checked and packed.

    Raises:
        ValueError: on shapes, dtypes or bounds that do not belong together, and for sequences longer than the model's
            positions. Values are looked at on a CPU only: on a GPU that would wait for it.
    """
    for name, ids in (("input_ids", input_ids), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if ids is not None and ids.dtype not in _IDS:
            raise ValueError(f"{name} must be int64 or int32, got {ids.dtype}")
    if input_ids.numel() == 0:
        raise ValueError(f"input_ids {tuple(input_ids.shape)} hold no tokens")
    if cu_seqlens is not None:
        if attention_mask is not None:
            raise ValueError("packed input takes no attention_mask: cu_seqlens says which tokens are real")
        return _packed(input_ids, token_type_ids, position_ids, cu_seqlens, max_seqlen, positions)
    if input_ids.dim() != 2 or max_seqlen is not None:
        raise ValueError(
            f"padded input_ids must be [B, S] without max_seqlen, got {tuple(input_ids.shape)} and max_seqlen={max_seqlen}; "
            "packed ones [T] need cu_seqlens [B + 1] as well"
        )
    return _padded(input_ids, attention_mask, token_type_ids, position_ids, positions)


def _check_length(longest: int, positions: int) -> None:
    if longest > positions:
        raise ValueError(
            f"a sequence has {longest} tokens but the model has {positions} positions (max_position_embeddings): "
            "truncate the text"
        )


def _fields(packing: ops.Packing | None, batch: int, seqlen: int, device: torch.device | str) -> dict[str, Any]:
    if packing is None:
        bounds = torch.arange(0, batch * seqlen + 1, seqlen, dtype=torch.int32, device=device)
        rows, longest = batch * seqlen, seqlen
    else:
        bounds, rows, longest = packing.cu_seqlens, packing.indices.shape[0], packing.max_seqlen
    return {
        "rows": rows,
        "cu_seqlens": bounds,
        "bounds": bounds,
        "max_seqlen": longest,
        "shape": (batch, seqlen),
        "exact": True,
        "packing": packing,
    }


def sequences_of(packing: ops.Packing | None, batch: int, seqlen: int, device: torch.device | str) -> Sequences:
    """Where the sequences of a padded batch [B, S] are; packing: None where every token is real."""
    return Sequences(**_fields(packing, batch, seqlen, device))


def of_batch(ids: Tensor, types: Tensor | None, position_ids: Tensor | None, packing: ops.Packing | None) -> Tokens:
    """The real tokens of ids [B, S]; types and position_ids: of a shape that broadcasts to it, or None for zeros and places in
    the row; packing: None where every token is real. Nothing is checked."""
    batch, seqlen = ids.shape
    shared = [t for t in (types, position_ids) if t is not None and t.numel() == seqlen]  # by all rows of the batch
    column = packing.indices % seqlen if packing is not None and (shared or position_ids is None) else None

    def real(values: Tensor) -> Tensor:
        if packing is None:
            return values.expand(batch, seqlen).reshape(-1)
        return values.reshape(-1)[column if values.numel() == seqlen and column is not None else packing.indices]

    if position_ids is None:
        position_ids = torch.arange(seqlen, device=ids.device) if column is None else None
    return Tokens(
        input_ids=real(ids),
        position_ids=column if position_ids is None else real(position_ids),
        token_type_ids=None if types is None else real(types),
        **_fields(packing, batch, seqlen, ids.device),
    )


def _packing(mask: Tensor | None) -> ops.Packing | None:
    """The packing of a mask [B, S]; None without one, and where every token is real."""
    if mask is None:
        return None
    if torch.compiler.is_compiling() or mask.is_floating_point():  # which pack looks at first
        packing = ops.pack(mask)
        return None if packing.indices.shape[0] == mask.numel() else packing
    known = ops.survey(mask.to(torch.bool))
    return None if known.tokens == mask.numel() else ops.pack(mask, known)


def _padded(
    ids: Tensor, mask: Tensor | None, types: Tensor | None, position_ids: Tensor | None, positions: int
) -> Tokens:
    batch, seqlen = ids.shape
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(ids.shape)}: [B, S], true or 1 at real tokens"
        )
    for name, other in (("token_type_ids", types), ("position_ids", position_ids)):
        if other is not None and other.shape not in ((batch, seqlen), (1, seqlen), (seqlen,)):
            raise ValueError(f"{name} {tuple(other.shape)} do not fit input_ids {tuple(ids.shape)}")
    packing = _packing(mask)
    if packing is not None and packing.indices.shape[0] == 0:
        raise ValueError(f"attention_mask {tuple(ids.shape)} has no real token")
    if position_ids is None:
        _check_length(seqlen if packing is None else packing.max_seqlen, positions)
    return of_batch(ids, types, position_ids, packing)


def _packed(
    ids: Tensor,
    types: Tensor | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    positions: int,
) -> Tokens:
    if ids.dim() != 1:
        raise ValueError(
            f"packed input_ids must be [T], got {tuple(ids.shape)} with cu_seqlens {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}")
    for name, other in (("token_type_ids", types), ("position_ids", position_ids)):
        if other is not None and other.shape != ids.shape:
            raise ValueError(f"{name} {tuple(other.shape)} do not fit input_ids {tuple(ids.shape)}")
    if cu_seqlens.device != ids.device:
        raise ValueError(f"cu_seqlens are on {cu_seqlens.device} and input_ids on {ids.device}")
    total, exact = ids.shape[0], False
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        tokens, longest = _checked(cu_seqlens, total, max_seqlen)
        if position_ids is None:
            _check_length(longest, positions)
        max_seqlen = max(longest, 1) if max_seqlen is None else max_seqlen
        exact = tokens > 0
        if exact:
            ids = ids[:tokens]
            types, position_ids = (None if t is None else t[:tokens] for t in (types, position_ids))
    if max_seqlen is None:
        raise ValueError("packed input needs max_seqlen, a bound on the longest sequence, with cu_seqlens")
    bounds = cu_seqlens if exact else _closed(cu_seqlens, total, max(max_seqlen, 1))
    if position_ids is None:
        row = torch.arange(ids.shape[0], dtype=torch.int32, device=ids.device)
        position_ids = row - bounds[torch.searchsorted(bounds[1:], row, right=True)]
    return Tokens(
        rows=ids.shape[0],
        cu_seqlens=cu_seqlens,
        bounds=bounds,
        max_seqlen=max(max_seqlen, 1),
        shape=(total,),
        exact=exact,
        input_ids=ids,
        position_ids=position_ids,
        token_type_ids=types,
    )


def _checked(cu_seqlens: Tensor, total: int, max_seqlen: int | None) -> tuple[int, int]:
    """Tokens in sequences, and those of the longest."""
    bounds = cu_seqlens.tolist()
    lengths = [end - begin for begin, end in pairwise(bounds)]
    longest = max(lengths)
    if bounds[0] != 0 or bounds[-1] > total or min(lengths) < 0:
        fall = next((i for i, length in enumerate(lengths) if length < 0), None)
        where = "" if fall is None else f" and a fall from {bounds[fall]} to {bounds[fall + 1]} at sequence {fall}"
        raise ValueError(
            f"cu_seqlens must rise from 0 to at most the {total} tokens of input_ids, got {bounds[0]} ... {bounds[-1]}{where}"
        )
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen} but a sequence has {longest} tokens")
    return bounds[-1], longest


def _closed(cu_seqlens: Tensor, total: int, max_seqlen: int) -> Tensor:
    """cu_seqlens and, for the rows past them, sequences of max_seqlen at most; the number of these depends on sizes alone."""
    pieces = -(-total // max_seqlen)
    steps = torch.arange(max_seqlen, (pieces + 1) * max_seqlen, max_seqlen, dtype=torch.int32, device=cu_seqlens.device)
    ends = cu_seqlens[-1:] + steps
    return torch.cat([cu_seqlens, ends.clamp(max=total)])
