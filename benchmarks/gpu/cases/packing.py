"""packing: rows of BERT-base and -large hidden states out of a half padded batch and back, ids, and one tiny batch."""

import torch

from benchmarks.gpu.case import Arguments, Case, randn
from bertfast.ops.packing import reference


def _mask(device: torch.device, batch: int, seqlen: int) -> torch.Tensor:
    """Right padding, lengths spread evenly from 1 to the whole: about half of it is padding."""
    lengths = torch.linspace(1, seqlen, batch, device=device).long()
    return torch.arange(seqlen, device=device) < lengths[:, None]


def _indices(device: torch.device, batch: int, seqlen: int) -> torch.Tensor:
    rows = batch * seqlen
    if device.type == "meta":
        return torch.empty(rows // 2, dtype=torch.int64, device=device)
    # Exactly half of the rows, in order, so that the bytes do not depend on rounding.
    return torch.randperm(rows, device=device)[: rows // 2].sort().values


def _rows(device: torch.device, dtype: torch.dtype, rows: int, cols: int) -> torch.Tensor:
    if dtype.is_floating_point:
        return randn(device, dtype, rows, cols)
    return torch.randint(0, 30000, (rows, cols), device=device, dtype=dtype)


def _unpad(batch: int, seqlen: int, cols: int, dtype: torch.dtype) -> Case:
    rows = batch * seqlen

    def make(device: torch.device) -> Arguments:
        return _rows(device, dtype, rows, cols), _indices(device, batch, seqlen)

    return Case(
        "unpad",
        f"{batch}x{seqlen}x{cols} half",
        dtype,
        make,
        bytes=rows // 2 * (2 * cols * dtype.itemsize + 8),
        peers={"torch": lambda a: lambda: torch.index_select(a[0], 0, a[1])},
        wide=0.5 if cols % 8 == 0 else 0.0,
    )


def _repad(batch: int, seqlen: int, cols: int, dtype: torch.dtype) -> Case:
    rows = batch * seqlen

    def make(device: torch.device) -> Arguments:
        return _rows(device, dtype, rows // 2, cols), _indices(device, batch, seqlen), rows

    return Case(
        "repad",
        f"{batch}x{seqlen}x{cols} half",
        dtype,
        make,
        bytes=(rows // 2 + rows) * cols * dtype.itemsize + rows // 2 * 8,
        peers={"torch": lambda a: lambda: a[0].new_zeros(a[2], a[0].shape[1]).index_copy_(0, a[1], a[0])},
        wide=0.3 if cols % 8 == 0 else 0.0,  # the inverse index scatters 4 bytes at a time
    )


def _pack_mask(batch: int, seqlen: int) -> Case:
    return Case(
        "pack_mask",
        f"{batch}x{seqlen} half",
        torch.bool,
        lambda device: (_mask(device, batch, seqlen),),
        bytes=batch * seqlen + batch * seqlen // 2 * 8 + (batch + 1) * 4,
        peers={"torch": lambda a: lambda: reference.pack_mask(*a)},
        wide=0.0,
    )


_SHAPES = [
    (16, 512, 768, torch.bfloat16),
    (128, 512, 768, torch.bfloat16),
    (128, 512, 1024, torch.bfloat16),
    (128, 512, 768, torch.float16),
    (128, 512, 768, torch.float32),
    (128, 512, 1, torch.int64),
    (16, 512, 257, torch.bfloat16),  # rows of an odd number of 2-byte units
    (1, 16, 768, torch.bfloat16),
]
CASES = [
    *[_unpad(*shape) for shape in _SHAPES],
    *[_repad(*shape) for shape in _SHAPES],
    *[_pack_mask(*shape) for shape in [(1, 16), (16, 512), (128, 512), (512, 128)]],
]
