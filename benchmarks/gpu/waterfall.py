"""Where the time of a training step and of an inference call goes on an H200, and what is left to the limit of the device.

    python -m benchmarks.gpu.waterfall_page      writes docs/waterfall.md and docs/images/waterfall.png

Measured times are committed data (`whole_graph_kernels.json`, one CUDA graph of our own models, by kernel). Floors follow from the
model's sizes: FLOPs over the measured rate of products, or bytes over the measured rate of a copy, whichever is larger. Predictions
take today's times and replace what a candidate replaces by what its prototype took (`runs/nvidia-h200-prototypes.jsonl`), or by
bytes at the share of the copy rate that such a pass reached. `waterfall_page` writes the page and the picture.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from benchmarks.gpu import results, whole_steps
from benchmarks.gpu.case import COPY
from bertfast.models import BertForPreTraining

MEASURED = results.FOLDER / "whole_graph_kernels.json"
PROTOTYPES = results.FOLDER / "runs" / "nvidia-h200-prototypes.jsonl"
MATRIX = 791e12  # bfloat16 FLOP a second, measured on the same device as `COPY`
FP8_MATRIX = 2 * MATRIX  # what the instructions promise; the fastest product so far reached 1,437e12
PASS = 0.85  # share of the copy rate that a pass with a transposed copy is predicted to reach
ONE_PASS = 0.9  # and the optimizer in one pass
FP8_LAYERS_LEFT = 1  # layers whose products stay in bfloat16

# Kind of work to what its kernels are called. The first that fits.
KINDS = {
    "products": r"nvjet|splitKreduce",
    "GELU passes": r"^bias_gelu",
    "attention forward": r"^attention_fwd",
    "attention backward": r"^attention_bwd",
    "norms": r"^dropout_add_norm",
    "optimizer and clipping": r"multi_tensor_apply",
    "column sums": r"^column_sum|^sums_kernel",
    "adds of gradients": r"CUDAFunctor_add",
    "embeddings": r"^embedding_sum_norm|^segments",
    "head and decoder": r"cutlass::Kernel2|^cross_entropy",
    "seeds, joined weights, memsets": r"Memset|distribution_elementwise|CatArray|copy_kernel",
}
REST, GAPS = "other kernels", "between kernels"
# They fit into a product's epilogue: no work of their own at the limit.
FUSED = ("GELU passes", "column sums", "adds of gradients")


@cache
def prototype(shape: str, name: str) -> float:
    """Microseconds of a prototype."""
    lines = [json.loads(text) for text in PROTOTYPES.read_text().splitlines()]
    return next(one["us"] for one in lines if (one.get("shape"), one.get("name")) == (shape, name))


@dataclass(frozen=True)
class Product:
    """x [rows, k] by a weight [n, k]."""

    rows: int
    k: int
    n: int

    def floor(self, matrix: float = MATRIX, size: int = 2) -> float:
        """Seconds. size: bytes of an operand's element; results have 2."""
        moved = size * (self.rows * self.k + self.n * self.k) + 2 * self.rows * self.n
        return max(2 * self.rows * self.k * self.n / matrix, moved / COPY)


@dataclass(frozen=True)
class Work:
    """What a call computes, in numbers."""

    row: whole_steps.Row
    run: dict[str, Any]  # of `MEASURED`

    @property
    def hidden(self) -> int:
        return whole_steps.SIZES[self.row.model][0]

    @property
    def layers(self) -> int:
        return whole_steps.SIZES[self.row.model][1]

    @property
    def tokens(self) -> int:
        return sum(self.row.lengths)

    @property
    def squares(self) -> int:
        return sum(length**2 for length in self.row.lengths)

    @property
    def masked(self) -> int:
        return int(whole_steps.MASKED * self.tokens) // 64 * 64 if self.row.train else 0

    @property
    def last(self) -> int:
        """Rows of the last layer behind its attention: in training those that the heads read."""
        return self.masked + len(self.row.lengths) if self.row.train else self.tokens

    @cached_property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in BertForPreTraining(whole_steps.config_of(self.row)).parameters())

    @property
    def layer_weights(self) -> int:
        return 12 * self.hidden**2

    @property
    def rows(self) -> list[int]:
        """Rows of each layer behind its attention."""
        return [*[self.tokens] * (self.layers - 1), self.last]

    def products(self) -> list[Product]:
        """Of all layers, forward."""
        e = self.hidden
        made = []
        for rows in self.rows:
            made += [
                Product(self.tokens, e, 3 * e),
                Product(rows, e, e),
                Product(rows, e, 4 * e),
                Product(rows, 4 * e, e),
            ]
        return made

    @property
    def passes(self) -> int:
        """How often each product is made: forward, and for the gradients of its input and its weight."""
        return 3 if self.row.train else 1

    @cached_property
    def floors(self) -> dict[str, float]:
        """Seconds below which each kind of work cannot be, made by kernels of its own."""
        e, t, train = self.hidden, self.tokens, self.row.train
        behind = sum(self.rows)
        logits = self.masked * whole_steps.VOCABULARY
        head = Product(self.masked, e, whole_steps.VOCABULARY).floor() + Product(self.masked, e, e).floor()
        return {
            "products": self.passes * sum(product.floor() for product in self.products()),
            "GELU passes": 4 * e * behind * 2 * (5 if train else 2) / COPY,
            "attention forward": self.layers * max(4 * e * self.squares / MATRIX, 4 * t * e * 2 / COPY),
            "attention backward": train * self.layers * max(10 * e * self.squares / MATRIX, 7 * t * e * 2 / COPY),
            "norms": (self.layers * t + behind) / 2 * 2 * e * 2 * (8 if train else 3) / COPY,
            "optimizer and clipping": train * self.parameters * 2 * 8 / COPY,
            "column sums": train * self.layers * 3 * t * e * 2 / COPY,
            "adds of gradients": train * 2 * self.layers * 3 * t * e * 2 / COPY,
            "embeddings": ((5 if train else 2) * t * e + train * whole_steps.VOCABULARY * e) * 2 / COPY,
            "head and decoder": 3 * head + 3 * logits * 2 / COPY if train else 0.0,
            "seeds, joined weights, memsets": 2 * self.layers * 3 * e**2 * 2 / COPY,
        }

    @cached_property
    def measured(self) -> dict[str, float]:
        """Seconds of each kind of work."""
        seconds = dict.fromkeys(KINDS, 0.0)
        for kernel in self.run["kernels"]:
            kind = next((kind for kind, words in KINDS.items() if re.search(words, kernel["name"])), REST)
            seconds[kind] = seconds.get(kind, 0.0) + kernel["us"] * 1e-6
        whole, graph = self.run["kernels_ms"] * 1e-3, self.run["graph_ms"] * 1e-3
        seconds[REST] = whole - sum(time for kind, time in seconds.items() if kind != REST)
        return seconds | {GAPS: max(0.0, graph - whole)}

    @property
    def shape(self) -> str:
        """The first product of the feed-forward half, as prototypes name it."""
        return f"16384x{4 * self.hidden}x{self.hidden}"

    @cached_property
    def in_bf16(self) -> dict[str, float]:
        """Seconds with the candidates of today, predicted."""
        took, floors = self.measured, self.floors
        plain = prototype(self.shape, "gluon product alone 128x256")
        ratio = plain / prototype(self.shape, "cuBLAS product alone")
        last_share = (self.last + self.masked / 4) / sum(self.rows) if self.row.train else 0.0
        if self.row.train:
            best = min(prototype(self.shape, f"gluon fast gelu + pre {tile}") for tile in ("128x256", "128x128 s5"))
            ours, epilogues = 2 / 3, 2 * (self.layers - 1)  # cuBLAS keeps the gradients of weights
        else:
            best, ours, epilogues = prototype(self.shape, "gluon fast gelu, no pre 128x256"), 1.0, self.layers
        return took | {
            "products": took["products"] * (ours * ratio + 1 - ours) + epilogues * (best - plain) * 1e-6,
            "GELU passes": took["GELU passes"] * last_share,
            "attention forward": took["attention forward"] * self._forward_tile(),
            "optimizer and clipping": floors["optimizer and clipping"] / ONE_PASS,
            "column sums": self._named("sums_kernel") / 2,
            "adds of gradients": 0.0,
            "head and decoder": self._padded_decoder(),
            "seeds, joined weights, memsets": took["seeds, joined weights, memsets"] / 2,
        }

    def _named(self, word: str) -> float:
        return sum(kernel["us"] for kernel in self.run["kernels"] if kernel["name"].startswith(word)) * 1e-6

    def _forward_tile(self) -> float:
        """What the tile that the tuner chose takes of the time of the one that ran, for sequences of several blocks."""
        if self.row.longest <= 128:
            return 1.0
        shape = "wiki512 32768x12 p0.1"
        return prototype(shape, "project 64x128w4s3") / prototype(shape, "project 128x128w8s3")

    def _padded_decoder(self) -> float:
        if not self.row.train:
            return 0.0
        rows = 2560
        three = sum(prototype(f"{name} {rows}x{self.hidden}", "V=30528") for name in ("forward", "dx", "dw"))
        return three * 1e-6 * self.masked / rows + self._named("cross_entropy")

    @cached_property
    def in_fp8(self) -> dict[str, float]:
        """Seconds with the layers' products in FP8 and the passes that cast on the way, predicted."""
        took, e, t, train = self.in_bf16, self.hidden, self.tokens, self.row.train
        now, layers = self.measured, self.layers - (FP8_LAYERS_LEFT if train else 0)
        share = layers / self.layers
        cells, copies = sum(self.rows[: self.layers]) * share, 2 if train else 1  # an FP8 result, and its transpose
        gelu = 4 * e * cells * ((2 + copies) + (4 + copies if train else 0)) / COPY / PASS
        # The result of a norm is written twice more forward, its gradient in FP8 alone.
        extra = 2 * e * cells * (copies + (copies - 2 if train else 0)) / COPY
        casts = layers * t * e * (4 if train else 1) * (2 + copies) / COPY / PASS + train * self.weight_casts()
        return took | {
            "products": now["products"] * (share * self._fp8_ratio() + 1 - share),
            "GELU passes": gelu + now["GELU passes"] * (1 - share),
            "norms": now["norms"] + extra,
            "casts that no pass makes": casts,
        }

    def weight_casts(self) -> float:
        """Reading all weights of layers, writing them and their transposed copies in FP8."""
        return self.layers * self.layer_weights * 4 / COPY / PASS

    def _fp8_ratio(self) -> float:
        """The time of torch's scaled products over that of its bfloat16 ones, by FLOPs, as measured at 16,384 rows."""
        e = self.hidden
        out = (768, 768)  # larger was not measured
        shapes = {(3 * e, e): 3, out: 1, (4 * e, e): 4, (e, 4 * e): 4}  # n, k: share of the FLOPs
        kind = "fp8 tensor fast accumulate" if self.row.train else "fp8 rows fast accumulate"
        times = [
            (flops, prototype(f"16384x{n}x{k}", kind) / prototype(f"16384x{n}x{k}", "bf16 F.linear"))
            for (n, k), flops in shapes.items()
        ]
        return sum(flops * ratio for flops, ratio in times) / sum(flops for flops, _ in times)

    def limit(self, fp8: bool) -> dict[str, float]:
        """Seconds that no kernel can be below: what fits into an epilogue costs nothing, and nothing lies between kernels."""
        seconds = {kind: 0.0 if kind in FUSED else time for kind, time in self.floors.items()}
        seconds["seeds, joined weights, memsets"] = 0.0
        if fp8:
            seconds["products"] = self.passes * sum(product.floor(FP8_MATRIX, 1) for product in self.products())
        return seconds


@cache
def works() -> tuple[Work, ...]:
    """The calls of the waterfall: those of `whole_steps.ROWS` that were measured by kernel."""
    runs = json.loads(MEASURED.read_text(encoding="utf-8"))["runs"]
    made = []
    for row in whole_steps.ROWS:
        kind = "training step" if row.train else "inference"
        place = {"kind": kind, "model": row.model, "longest": row.longest, "weights": "bfloat16"}
        same = [run for run in runs if place.items() <= run.items() and abs(run["tokens"] - sum(row.lengths)) <= 8]
        made += [Work(row, run) for run in same]
    return tuple(made)


COLUMNS: dict[str, Callable[[Work], dict[str, float]]] = {
    "measured": lambda work: work.measured,
    "bf16, candidates": lambda work: work.in_bf16,
    "FP8": lambda work: work.in_fp8,
    "limit, bf16": lambda work: work.limit(False),
    "limit, FP8": lambda work: work.limit(True),
}


def kinds_of(work: Work) -> list[str]:
    """The kinds of work that take any time in any column, the most costly first."""
    every = dict.fromkeys(kind for column in COLUMNS.values() for kind in column(work))
    largest = {kind: max(column(work).get(kind, 0.0) for column in COLUMNS.values()) for kind in every}
    return sorted((kind for kind in every if largest[kind] > 5e-6), key=lambda kind: -work.measured.get(kind, 0.0))
