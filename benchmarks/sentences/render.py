"""The results as tables for a terminal and a picture."""

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.sentences.run import OURS, PEERS, TARGETS, Results, Row, Side

_COLOURS = {"torch": "#8c8c8c", "onnx": "#7b68c8", "openvino": "#3f8fc4"}


def _cell(side: Side | None) -> str:
    if side is None or side.seconds is None:
        return "-"
    ratio = f" {side.ratio.p50:.2f}x [{side.ratio.p20:.2f}, {side.ratio.p80:.2f}]" if side.ratio else ""
    return f"{side.seconds.p50:.2f} s{ratio}"


def name_of(row: Row) -> str:
    return f"{row.task}, {row.dtype}, {row.source}"


def speed_table(results: Results) -> Table:
    """Seconds of each backend, and how many times ours that is: median, p20 and p80."""
    table = Table(title="seconds, and times as long as bertfast", title_justify="left")
    for column in ("row", "inputs", "tokens", "padding", OURS, *PEERS):
        table.add_column(column)
    for row in results.rows:
        facts = [name_of(row), str(row.inputs), str(row.tokens), f"{row.padding:.0%}"]
        sides = [row.sides.get(name) for name in (OURS, *PEERS)]
        ours = "-" if sides[0] is None or sides[0].seconds is None else f"{sides[0].seconds.p50:.2f} s"
        table.add_row(*facts, ours, *map(_cell, sides[1:]))
    return table


def quality_table(results: Results) -> Table:
    """Errors against stock in float64: root mean square, and the worst and mean cosine."""
    table = Table(title="against float64: rms error, mean and worst cosine", title_justify="left")
    for column in ("row", "parity", OURS, *PEERS):
        table.add_column(column)
    for row in results.rows:
        cells = []
        for name in (OURS, *PEERS):
            side = row.sides.get(name)
            empty = side is None or side.rms_error is None
            cells.append("-" if empty else f"{side.rms_error:.1e}, {side.mean_cosine:.6f}, {side.worst_cosine:.6f}")
        table.add_row(name_of(row), {True: "yes", False: "NO", None: "-"}[row.parity], *cells)
    return table


def notes(results: Results) -> list[str]:
    """Targets with what was measured, and what is missing and why."""
    lines = [
        f"target {t['least']:g}x of {t['peer']}: {t['task']}, {t['dtype']}, {t['source']}: {t['measured']:.2f}x, "
        f"{'met' if t['met'] else 'MISSED'}"
        for t in results.targets()
    ]
    lines += [
        f"{name_of(row)}: {name} is missing: {side.reason}"
        for row in results.rows
        for name, side in row.sides.items()
        if side.reason
    ]
    return lines + results.problems


def plot(results: Results, environment: dict[str, Any], path: Path) -> None:
    """A bar for each row and backend, whiskers p20 to p80, ticks at the targets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results.rows if row.ratios]
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.95 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        for index, name in enumerate(PEERS):
            side = row.sides[name]
            at = place + (index - 1) * 0.27
            if side.ratio is None:
                axis.text(0.03, at, "not available", va="center", fontsize=7.5, color="#8c8c8c")
                continue
            spread = [[side.ratio.p50 - side.ratio.p20], [side.ratio.p80 - side.ratio.p50]]
            axis.barh(at, side.ratio.p50, 0.25, xerr=spread, color=_COLOURS[name], error_kw={"linewidth": 0.8})
            axis.text(side.ratio.p80 + 0.04, at, f"{side.ratio.p50:.2f}", va="center", fontsize=8)
        if row.dtype != "int8":
            axis.vlines(TARGETS["torch"], place - 0.4, place - 0.14, color="#c44e52", linewidth=2)
            axis.vlines(TARGETS["fastest"], place - 0.13, place + 0.4, color="#c44e52", linewidth=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [f"{row.task}, {row.dtype}\n{row.source}" for row in rows], fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlabel("times as fast as the library's backend")
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[name]) for name in PEERS]
    handles.append(plt.Line2D([], [], color="#c44e52", linewidth=2))
    labels = [*PEERS, "target: 2 of torch, 1.5 of the fastest"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    title = f"sentence-transformers, encode and predict: {environment['processor']}, {environment['threads']} threads"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
