"""What is measured and what is demanded: rows of batches, and the targets as data."""

from dataclasses import dataclass
from typing import Any

import torch

MODELS = ("bert-base", "minilm")
DTYPES = ("float32", "bfloat16")
FLOAT32, BFLOAT16 = DTYPES


@dataclass(frozen=True)
class Row:
    """A batch of `batch` sequences of up to `length` tokens, of which the share `padding` is padding."""

    batch: int
    length: int
    padding: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.length}{' half' if self.padding else ''}"


ROWS = (Row(1, 16), Row(1, 128), Row(16, 128), Row(4, 512), Row(16, 128, 0.5), Row(8, 512, 0.5))
TRAINING_ROWS = (Row(8, 128), Row(8, 128, 0.5))
THREAD_ROW = Row(16, 128)
SENTENCES = "real sentences"
BRIEF = ("1x16", "16x128", "16x128 half")

_QUERY, _HALF, _LARGE = ("1x16",), ("16x128 half", "8x512 half"), ("16x128", "4x512")
_FULL = ("1x128", *_LARGE)


@dataclass(frozen=True)
class Target:
    """`kind` against `peer` on these rows must reach `least`: a ratio of times, a share, a cosine or a ratio of memory."""

    kind: str
    peer: str
    dtype: str
    rows: tuple[str, ...]
    least: float


TARGETS = (
    Target("speed", "openvino", FLOAT32, _FULL, 1.0),
    Target("speed", "openvino", FLOAT32, _HALF, 1.85),
    Target("speed", "openvino", FLOAT32, _QUERY, 1.25),
    Target("speed", "openvino", BFLOAT16, _FULL, 1.0),
    Target("speed", "openvino", BFLOAT16, _HALF, 1.75),
    Target("speed", "onnxruntime", FLOAT32, _FULL, 1.1),
    Target("speed", "onnxruntime", FLOAT32, _HALF, 2.0),
    Target("speed", "onnxruntime", FLOAT32, _QUERY, 1.4),
    Target("speed", "stock", FLOAT32, _FULL, 1.25),
    Target("speed", "stock", FLOAT32, _HALF, 2.3),
    Target("speed", "stock", FLOAT32, _QUERY, 3.0),
    Target("speed", "stock", BFLOAT16, _FULL, 1.2),
    Target("speed", "stock", BFLOAT16, _HALF, 2.1),
    Target("share of matrix rate", "machine", FLOAT32, _LARGE, 0.9),
    Target("share of matrix rate", "machine", BFLOAT16, _LARGE, 0.85),
    Target("int8 speed", "bertfast", BFLOAT16, _LARGE, 1.5),
    Target("int8 mean cosine", "exact", BFLOAT16, (SENTENCES,), 0.995),
    Target("threads", "1 thread", FLOAT32, (THREAD_ROW.name,), 1.8),
    Target("threads", "1 thread", BFLOAT16, (THREAD_ROW.name,), 1.8),
    Target("training speed", "stock", FLOAT32, ("8x128",), 1.5),
    Target("training speed", "stock", BFLOAT16, ("8x128",), 1.5),
    Target("training speed", "stock", FLOAT32, ("8x128 half",), 3.0),
    Target("training speed", "stock", BFLOAT16, ("8x128 half",), 3.0),
    Target("training memory", "stock", FLOAT32, tuple(row.name for row in TRAINING_ROWS), 2.0),
    Target("training memory", "stock", BFLOAT16, tuple(row.name for row in TRAINING_ROWS), 2.0),
)


def targets_of(kind: str, peer: str, dtype: str, row: str) -> float | None:
    """The least that is demanded there, if anything is."""
    found = [t.least for t in TARGETS if (t.kind, t.peer, t.dtype) == (kind, peer, dtype) and row in t.rows]
    return max(found, default=None)


def useful_flops(config: Any, lengths: torch.Tensor) -> float:
    """FLOPs of the encoder's matrix products on the real tokens alone; lengths [B]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    tokens, squares = float(lengths.sum()), float((lengths.double() ** 2).sum())
    return config.num_hidden_layers * (2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * squares * hidden)
