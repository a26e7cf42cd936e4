"""`python -m benchmarks.fp8_counts`: what FP8 should save on an H200, from measured times of its products and casts. A prediction.

Of 16,384 tokens. Products and casts are medians of prototypes (`results/runs/nvidia-h200-prototypes.jsonl`); what only writes or
reads more or fewer bytes is counted at the measured rate of a copy. What no prototype has is in proportion to the nearest measured.
"""

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

LINES = Path(__file__).parent / "results" / "runs" / "nvidia-h200-prototypes.jsonl"
TOKENS, COPY = 16384, 4.251e6  # bytes a microsecond
BFLOAT16, FAST, EXACT, FAST_ROWS = (
    "bf16 F.linear",
    "fp8 tensor fast accumulate",
    "fp8 tensor exact accumulate",
    "fp8 rows fast accumulate",
)
CAST, CAST_ROWS = "cast + transpose + amax 64x64w4", "cast, scale a row"
# name: columns, layers, what a step and an inference pass took in one graph, in us, and the sequences of the pass
SIZES = {"base": (768, 12, 22200, 6290, 128), "large": (1024, 24, 74900, 22560, 82)}


def measured() -> dict[tuple[str, str], float]:
    lines = map(json.loads, LINES.read_text().splitlines())
    return {(line["shape"], line["name"]): line["us"] for line in lines if line.get("stage") in ("fp8", "fp8cast")}


class Times:
    """Microseconds for rows of E columns."""

    def __init__(self, columns: int) -> None:
        self.columns, self._measured = columns, measured()

    def products(self, name: str) -> dict[str, float]:
        """Of query, key and value; output; and both of the feed-forward half."""
        e = self.columns
        small = self._measured["16384x768x768", name] * (e / 768) ** 2  # as measured for base
        return {
            "qkv": self._measured[f"16384x{3 * e}x{e}", name],
            "out": small,
            "up": self._measured[f"16384x{4 * e}x{e}", name],
            "down": self._measured[f"16384x{e}x{4 * e}", name],
        }

    def cast(self, columns: int, name: str) -> float:
        """By a pass of its own; between two measured widths in proportion."""
        one, two = self._measured["16384x768", name], self._measured["16384x3072", name]
        return one + (two - one) * (columns - 768) / (3072 - 768)

    def moved(self, columns: float) -> float:
        """Of so many bytes for each token."""
        return TOKENS * columns / COPY


def training(columns: int, layers: int) -> dict[str, float]:
    """What one layer's parts save (positive) or cost, and a step of the layers that are in FP8."""
    times, e = Times(columns), columns
    bfloat16, fast, exact = (times.products(name) for name in (BFLOAT16, FAST, EXACT))
    saved = {name: 3 * bfloat16[name] - fast[name] - 2 * exact[name] for name in bfloat16}
    costs = {
        "cast of the context": -times.cast(e, CAST),
        "cast of dqkv": -times.cast(3 * e, CAST),
        "norms write y in FP8, twice": -times.moved(2 * 2 * e),
        "gradients of the residual added by a pass": -times.moved(2 * 6 * e),
    }
    weights = 12 * e * e * (layers - 1)
    parts = {f"products: {name}": value for name, value in saved.items()} | costs
    layer = sum(parts.values())
    # Each is read twice in float32, for its amax and to be cast, and written twice.
    return parts | {
        "a layer": layer,
        "casts of weights, a step": -weights * 10 / COPY,
        "a step": layer * (layers - 1) - weights * 10 / COPY,
    }


def inference(columns: int, layers: int) -> dict[str, float]:
    """The same of an inference pass, all of whose layers are in FP8."""
    times, e = Times(columns), columns
    bfloat16, rows = (times.products(name) for name in (BFLOAT16, FAST_ROWS))
    parts = {f"products: {name}": bfloat16[name] - rows[name] for name in ("qkv", "up", "down")}
    parts["products: out, were it in FP8 (it is not)"] = bfloat16["out"] - rows["out"] - times.cast(e, CAST_ROWS)
    parts |= {"norms write y in FP8": -times.moved(2 * e), "GELU writes half": times.moved(4 * e)}
    layer = sum(value for name, value in parts.items() if "is not" not in name)
    weights = -11 * e * e * layers * 3 / COPY
    return parts | {
        "a layer": layer,
        "casts of weights, a call": weights,
        "a pass": layer * layers + weights - times.cast(e, CAST_ROWS),
    }


def main() -> None:
    """What FP8 should save of a training step and an inference pass, by kind of work."""
    console = Console(width=110)
    for title, function, place, last in (
        ("training", training, 2, "a step"),
        ("inference", inference, 3, "a pass"),
    ):
        table = Table(title=f"{title} in FP8: microseconds saved, predicted, H200, {TOKENS} tokens")
        table.add_column("")
        columns = {}
        for name, (width, layers, *_) in SIZES.items():
            table.add_column(name, justify="right")
            columns[name] = function(width, layers)
        for part in columns["base"]:
            table.add_row(part, *(f"{column[part]:.0f}" for column in columns.values()))
        for name, column in columns.items():
            before = SIZES[name][place]
            after = before - column[last]
            rate = TOKENS if title == "training" else SIZES[name][4]
            unit = "tokens/s" if title == "training" else "sequences/s"
            table.caption = (table.caption or "") + (
                f"{name}: {before / 1e3:.1f} ms to {after / 1e3:.1f}, "
                f"{rate / before * 1e6:,.0f} {unit} to {rate / after * 1e6:,.0f}. "
            )
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
