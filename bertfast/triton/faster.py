"""Which captured calls of the drop-in on a GPU are faster than stock in wall-clock time, by committed results of real devices.

A whole inference call is one replay of a CUDA graph there; in training all layers are two, forward and backward. `faster.json`
holds what `make gpu` measured of such calls beside stock, written by `python -m benchmarks.gpu verified`; lines of eager calls are
not in it. A call is compared with the nearest line of its kind and dtype, and takes stock where that one was slower. This module
imports neither Triton nor transformers.
"""

import json
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("faster.json")
# Types whose captured calls are on before any was timed. Their kernels took 0.42 to 0.9 of stock's GPU time in every profile
# (docs/gpu.md), and a replay leaves nothing but GPU time: captured by hand, a whole training step of BERT-base went from 48.7 ms to
# 23.0 where stock takes 32.6 without an optimizer. Float32 kernels have no such result.
ON_UNMEASURED = frozenset({torch.bfloat16, torch.float16})
_KEPT_BITS = 4  # of a number of tokens: numbers within an eighth of each other share one look-up

# case, device, date, commit; dtype, hidden, layers, tokens (places of the batch, padding included), seqlen; train: whether forward
# and backward were measured; ratio: stock's time over ours, so below 1 stock is faster.
Line = dict[str, Any]


@cache
def _table() -> dict[str, list[Line]]:
    """{architecture: lines}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measured(arch: int, dtype: torch.dtype, train: bool = False) -> list[Line]:
    """The committed lines of captured calls on `arch`, such as 90, in `dtype`: of inference or of training."""
    lines = _table().get(str(arch), [])
    return [line for line in lines if line["dtype"] == _name(dtype) and line["train"] == train]


def dtype_reason(arch: int, dtype: torch.dtype, train: bool = False) -> str | None:
    """Why captured calls in `dtype` take stock on `arch` whatever their size; None where their size decides."""
    if dtype in ON_UNMEASURED or measured(arch, dtype, train):
        return None
    return f"no committed result shows {_name(dtype)}{' training' * train} faster than stock on sm_{arch}"


def slower_reason(
    arch: int,
    dtype: torch.dtype,
    hidden: int,
    layers: int,
    tokens: int,
    seqlen: int | None = None,
    train: bool = False,
) -> str | None:
    """Why a captured call of this size takes stock: the nearest committed line was slower. None where it was not, or there is none.

    Nearest is least in the sum of the logarithms of the ratios of hidden size, layers and tokens, and of these least in that of
    seqlen. Where several lines are equally near, such as batches with and without padding, the slowest one decides.

    Args:
        arch: of the device, such as 90.
        dtype: of the products.
        hidden, layers: of the model.
        tokens: places of the batch, padding included, so that nothing has to be counted on the device.
        seqlen: of the padded batch, where it is to tell lines of as many tokens apart.
        train: whether it is forward and backward of training.
    """
    drop = max(0, tokens.bit_length() - _KEPT_BITS)
    return _slower(arch, dtype, hidden, layers, tokens >> drop << drop, seqlen, train)


@lru_cache(maxsize=4096)
def _slower(
    arch: int, dtype: torch.dtype, hidden: int, layers: int, tokens: int, seqlen: int | None, train: bool
) -> str | None:
    lines = measured(arch, dtype, train)
    if not lines:
        return None
    size = {"hidden": hidden, "layers": layers, "tokens": tokens}
    length = {} if seqlen is None else {"seqlen": seqlen}
    # The slowest of the nearest: the distances of lines of one size are equal to the bit.
    line = min(lines, key=lambda line: (_distance(line, size), _distance(line, length), line["ratio"]))
    return f"stock is faster near this size: {told(line)}" if line["ratio"] < 1 else None


def _distance(line: Line, size: dict[str, int]) -> float:
    return sum(abs(math.log2(max(1, value) / line[name])) for name, value in size.items())


def told(line: Line) -> str:
    """One line in words: how fast it was, what it measured, where and when."""
    return f"{line['ratio']:.2f} of stock's speed in {line['case']} ({line['device']}, {line['date'][:10]})"


def slower(arch: int, dtype: torch.dtype, train: bool = False) -> list[Line]:
    """The committed lines of captured calls that lose to stock, the slowest first."""
    return sorted((line for line in measured(arch, dtype, train) if line["ratio"] < 1), key=lambda line: line["ratio"])


PROFILED = "; in every profile these kernels took 0.42 to 0.9 of stock's GPU time"  # what `remark` says where nothing was timed


def remarks(arch: int, dtype: torch.dtype, kinds: Sequence[bool]) -> str:
    """`remark` of inference (False) and of training (True), what both say only once."""
    each = [remark(arch, dtype, train) for train in kinds]
    profiled = PROFILED if any(text.endswith(PROFILED) for text in each) else ""
    return "; ".join(text.removesuffix(PROFILED) for text in each) + profiled


def remark(arch: int, dtype: torch.dtype, train: bool = False) -> str:
    """What is known of the speed of captured calls on `arch` in `dtype`, in plain words."""
    lines, calls = measured(arch, dtype, train), "captured training calls" if train else "captured calls"
    if not lines:
        text = f"{calls} in {_name(dtype)} were not yet timed beside stock on sm_{arch}"
        return text + PROFILED * (dtype in ON_UNMEASURED)
    ratios = sorted(line["ratio"] for line in lines)
    devices = ", ".join(sorted({line["device"] for line in lines}))
    text = f"{calls} in {_name(dtype)} ran at {ratios[0]:.2f} to {ratios[-1]:.2f} times stock's speed on {devices}"
    losing = "; ".join(told(line) for line in slower(arch, dtype, train))
    return text + (f". Calls near these sizes take stock: {losing}" if losing else "")
