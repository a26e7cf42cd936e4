"""Writes docs/waterfall.md and its picture from `waterfall`: python -m benchmarks.gpu.waterfall_page."""

import json
from pathlib import Path
from typing import Any

import typer

from benchmarks.gpu import results, waterfall, whole_steps
from benchmarks.gpu.docs import as_table
from benchmarks.gpu.waterfall import COLUMNS, Work, kinds_of, works

PAGE = results.ROOT / "docs" / "waterfall.md"
PREDICTED = ("bf16, candidates", "FP8")
PICTURE = results.ROOT / "docs" / "images" / "waterfall.png"

HEAD = """# Where the time goes, and how far the limit is

Written by `python -m benchmarks.gpu.waterfall_page`; do not edit. Everything is of one NVIDIA H200, bfloat16 weights, one CUDA
graph for a whole call of our own models; a training step is MLM + NSP with dropout 0.1, clipping and AdamW. What is called
measured is of {date}, commit {commit} (`benchmarks/results/whole_graph_kernels.json`), torch {torch} and Triton {triton}.
**Everything else on this page is arithmetic: nothing of it has run on a GPU yet.** `make gpu STAGES=candidates` measures it.

- **measured**: the sum of the kernels under torch's profiler, and what the graph took beyond that without one (between kernels).
  Where the profiled kernels sum to more than the graph took, as in the large step (74.9 and 73.6 ms), nothing is put between them.
- **floor**: the FLOPs of this kind of work at {matrix:.0f} TFLOP/s, or its bytes at {copy:,.0f} GB/s, both measured on that GPU,
  whichever takes longer, if it has kernels of its own. Of attention that is its products alone: exponentials and dropout bits take
  longer than they, and no rate is given for them here. A floor may be beaten by what is still in the cache.
- **bf16, candidates**: the measured times with what our candidates replace: products with GELU, its derivative, bias gradients and
  additions in their epilogues at the times of prototypes, the optimizer in one pass at {one_pass:.0%} of the copy rate, the decoder
  with padded words, attention's forward with the tile that the tuner chose. The clock falls in long steps (power), which the
  prototypes' times do not show.
- **FP8**: torch's scaled products at their measured times, {left} layer of training in bfloat16, GELU passes that write FP8 and its
  transposed copy at {share:.0%} of the copy rate, norms that write them too, the weights cast once a step, attention's context and
  gradient cast by a pass.
- **limit**: what is left when GELU, column sums and additions cost nothing because they are done while a product runs, every other
  kind takes its floor, and nothing lies between kernels. FP8's rate is twice bfloat16's; the fastest product measured so far
  reached 1,437 TFLOP/s.

![time by kind of work](images/waterfall.png)
"""


def ms(seconds: float | None) -> str:
    """Milliseconds; nothing for none."""
    return f"{1e3 * seconds:.2f}" if seconds else ""


def table(work: Work) -> str:
    """One call: a row for each kind of work, milliseconds."""
    rows, others = [], [column for name, column in COLUMNS.items() if name != "measured"]
    for kind in kinds_of(work):
        took, floor = work.measured.get(kind, 0.0), work.floors.get(kind)
        share = f"{100 * floor / took:.0f} %" if floor and took else ""
        rows.append([kind, ms(took), ms(floor), share, *(ms(column(work).get(kind)) for column in others)])
    measured, *predicted = [sum(column(work).values()) for column in (COLUMNS["measured"], *others)]
    rows.append(["**all**", ms(measured), "", "", *map(ms, predicted)])
    rates = [f"{work.row.count / seconds:,.0f}" for seconds in predicted]
    rows.append([f"**{work.row.unit}**", f"{work.row.count / measured:,.0f}", "", "", *rates])
    return as_table(
        ["ms", "measured", "floor", "share of ceiling", *(name for name in COLUMNS if name != "measured")], rows
    )


def goals(work: Work) -> str:
    """How far the predictions are from the goals."""
    words = []
    for precision, seconds in (("bf16", work.in_bf16), ("fp8", work.in_fp8)):
        target, rate = work.row.targets[precision], work.row.count / sum(seconds.values())
        share = rate / target.goal
        beyond = "" if target.moonshot is None else f" (beyond it: {target.moonshot:,.0f})"
        words.append(f"{share:.2f} of {target.goal:,.0f} in {precision}{beyond}")
    return f"Predicted {work.row.unit} are, of this project's targets, {' and '.join(words)}"


def left(work: Work) -> str:
    """What stands between the predictions and the limits: the largest four of each."""
    words = []
    for name, seconds, limit in (("bf16", work.in_bf16, work.limit(False)), ("FP8", work.in_fp8, work.limit(True))):
        gaps = {kind: time - limit.get(kind, 0.0) for kind, time in seconds.items()}
        largest = sorted(gaps, key=lambda kind: -gaps[kind])[:4]
        listed = ", ".join(f"{kind} {ms(gaps[kind])}" for kind in largest)
        words.append(f"Between {name} as predicted and its limit are {ms(sum(gaps.values()))} ms: {listed}.")
    return " ".join(words)


def measured_since(lines: list[results.Line]) -> str:
    """The last lines of whole calls by the stage candidates."""
    last = {one["case"]: one for one in results.latest(lines) if one["stage"] == "candidates" and one.get("sides")}
    rows = []
    for row in whole_steps.ROWS:
        one = last.get(row.name)
        for side, got in (one or {}).get("sides", {}).items():
            if one is not None and "rate" in got:
                where = f"{one['device']}, {one['date'][:10]}, {one['commit']}"
                rows.append([row.name, side, ms(got["p50"]), f"{got['rate']:,.0f} {row.unit}", where])
    if not rows:
        return "No line yet.\n"
    return as_table(["call", "by", "ms", "rate", "measured"], rows)


def page(lines: list[results.Line]) -> str:
    """The text of docs/waterfall.md with these lines."""
    origin: dict[str, Any] = json.loads(waterfall.MEASURED.read_text(encoding="utf-8"))
    about = {name: origin[name] for name in ("date", "commit", "torch", "triton")}
    rates = {"matrix": waterfall.MATRIX / 1e12, "copy": waterfall.COPY / 1e9, "one_pass": waterfall.ONE_PASS}
    parts = [HEAD.format(**about, **rates, share=waterfall.PASS, left=waterfall.FP8_LAYERS_LEFT)]
    for work in works():
        parts.append(f"## {work.row.name}\n\n{table(work)}\n{left(work)} {goals(work)}.\n")
    parts.append(f"## Measured since: `make gpu STAGES=candidates`\n\n{measured_since(lines)}")
    return "\n".join(parts)


def draw(file: Path = PICTURE) -> None:
    """A panel for each call, a bar for each column, a piece for each kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [*waterfall.KINDS, "casts that no pass makes", waterfall.REST, waterfall.GAPS]
    colors = dict(zip(kinds, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    figure, panels = plt.subplots(len(works()), 1, figsize=(10, 2.6 * len(works()) + 1), layout="constrained")
    for panel, work in zip(panels, works(), strict=True):
        for place, column in enumerate(COLUMNS.values()):
            begin = 0.0
            for kind in kinds:
                length = 1e3 * column(work).get(kind, 0.0)
                panel.barh(place, length, left=begin, color=colors[kind], edgecolor="white", linewidth=0.5, label=kind)
                begin += length
            text = f" {begin:.1f} ms, {work.row.count / begin * 1e3:,.0f} {work.row.unit}"
            panel.text(begin, place, text, va="center", fontsize=8)
        labels = [f"{name}, predicted" if name in PREDICTED else name for name in COLUMNS]
        panel.set_yticks(range(len(COLUMNS)), labels)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.28e3 * sum(work.measured.values()))
        panel.set_title(work.row.name, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("ms on an H200; measured is the only column that ran")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def write(file: Path = PAGE) -> None:
    file.write_text(page(results.read()), encoding="utf-8")


def main() -> None:
    """Write docs/waterfall.md and its picture from counts and committed results."""
    write()
    draw()
    print(f"wrote {PAGE} and its picture")


if __name__ == "__main__":
    typer.run(main)
