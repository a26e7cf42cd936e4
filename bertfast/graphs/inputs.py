"""The static buffers that a captured inference call reads its tokens from, and how a call's own tokens get into them."""

from collections.abc import Callable

import torch
from torch import Tensor

from bertfast import _torch
from bertfast.graphs.buckets import Bucket
from bertfast.nn.tokens import Tokens

_copy = _torch.foreach("copy_")


class Bounds:
    """Where the sequences of any call of a bucket begin, those of the rows past its own included.

    Attributes:
        tensor: [sequences + rest + 1] int32, from 0 to the bucket's rows.
    """

    def __init__(self, bucket: Bucket, device: torch.device):
        size, longest = bucket.tokens, bucket.longest
        self.tensor = torch.zeros(bucket.sequences + 1 + bucket.rest, dtype=torch.int32, device=device)
        # Where sequences past a call's own end unless its rows do later: the absent ones at 0; those of the rest as late as they
        # can, the last of them with the buffer.
        ends = [0] * (bucket.sequences + 1) + [max(0, size - longest * later) for later in range(bucket.rest)[::-1]]
        self._ends = torch.tensor(ends, dtype=torch.int32, device=device)
        self.nbytes = self.tensor.nbytes + self._ends.nbytes

    def target(self, bounds: Tensor) -> Tensor:
        """Where a call's own bounds [B + 1] are to be copied to, before `close`."""
        return self.tensor[: bounds.shape[0]]

    def close(self, bounds: Tensor, rows: int) -> None:
        """Put the rows past a call's own, which are so many, into sequences of their own."""
        count = bounds.shape[0]
        torch.clamp(self._ends[count:], min=rows, out=self.tensor[count:])


class Inputs:
    """Buffers for any call of a bucket.

    Rows past a call's own are tokens of sequences of their own: they cost time and change nothing. Their ids are zeros, since what
    an earlier call left there might be an id that it was wrong to give.

    Attributes:
        tokens: the buffers as a model takes them.
        nbytes: of them.
    """

    def __init__(self, bucket: Bucket, device: torch.device, segments: bool):
        """segments: whether there are token_type_ids."""
        size, longest = bucket.tokens, bucket.longest
        self._ids = torch.zeros(3 if segments else 2, size, dtype=torch.int64, device=device)
        self._bounds = Bounds(bucket, device)
        bounds = self._bounds.tensor
        self._read = torch.zeros(bucket.read, dtype=torch.int64, device=device) if type(bucket.read) is int else None
        self._first = bucket.read == "first"
        self._used = 0  # rows that the calls before wrote
        self.tokens = Tokens(
            rows=size,
            cu_seqlens=bounds[: bucket.sequences + 1],
            bounds=bounds,
            max_seqlen=longest,
            shape=(size,),
            exact=False,
            input_ids=self._ids[0],
            position_ids=self._ids[1],
            token_type_ids=self._ids[2] if segments else None,
        )
        self.nbytes = self._ids.nbytes + self._bounds.nbytes + (0 if self._read is None else self._read.nbytes)

    def read(self) -> Tensor | None:
        """Rows that are read; those past a call's own are some rows or other."""
        return self.tokens.first if self._first else self._read

    def fill(self, tokens: Tokens, read: Tensor | None, staged: Callable[[Tensor], Tensor]) -> None:
        """Put a call's tokens and named rows into the buffers: three small launches, one more after a longer call, no wait.

        tokens: exact, N rows from bound 0 to bound N.
        """
        count = tokens.rows
        if self._used > count:
            self._ids[:, count : self._used].zero_()
        self._used = count
        sources = [tokens.input_ids, tokens.position_ids, tokens.bounds]
        targets = [self._ids[0, :count], self._ids[1, :count], self._bounds.target(tokens.bounds)]
        if tokens.token_type_ids is not None:
            sources.append(tokens.token_type_ids)
            targets.append(self._ids[2, :count])
        if read is not None and self._read is not None:
            sources.append(read)
            targets.append(self._read[: read.shape[0]])
        copy_all(targets, [staged(source) for source in sources])
        self._bounds.close(tokens.bounds, count)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """A launch for each dtype of the sources: torch copies tensors together only where they are alike."""
    for dtype in dict.fromkeys(source.dtype for source in sources):
        of_dtype = [i for i, source in enumerate(sources) if source.dtype is dtype]
        _copy([targets[i] for i in of_dtype], [sources[i] for i in of_dtype], non_blocking=True)
