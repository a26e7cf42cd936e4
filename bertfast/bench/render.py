"""How results are shown: rich tables and a bar chart."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bertfast.bench.run import Result
from bertfast.bench.verify import Row

_STOCK, _FAST, _LOSS = "#8a8f98", "#1f6feb", "#c4432b"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def bench_tables(results: list[Result], environment: dict[str, Any]) -> tuple[Table, Table]:
    """Speed, and then errors and memory: one row a case in each, narrow enough for a terminal of 80 columns.

    Ratios come first, since absolute figures of a CPU belong to that machine alone.
    """
    speed = Table(
        title=f"stock (sdpa) against bertfast on {environment['processor']}, {environment['threads']} threads, "
        f"kernels: {environment['kernels']}",
        caption="speed-up: median of pairwise ratios (p20-p80); tokens/s: real tokens only, this machine only",
    )
    rest = Table(
        title="errors against stock in float64, and memory in MiB",
        caption="max error: the batch where ours is largest beside stock's; memory: resident peak of one call, + what "
        "the fast side keeps in prepacked weights",
    )
    for table, names in (
        (speed, ("padding", "speed-up", "p20-p80", "stock tok/s", "fast tok/s", "parity")),
        (rest, ("stock max", "fast max", "ratio", "cosine", "stock MiB", "fast MiB")),
    ):
        table.add_column("case", min_width=12)
        for name in names:
            table.add_column(name, justify="right", min_width=len(max(name.split(), key=len)))
    for r in results:
        ratio, parity = r.comparison.ratio, r.parity
        speed.add_row(
            r.case,
            f"{r.padding:.0%}",
            f"[bold]{ratio.p50:.2f}x[/]" if ratio.p50 >= 1 else f"[red]{ratio.p50:.2f}x[/]",
            f"{ratio.p20:.2f}-{ratio.p80:.2f}",
            f"{r.tokens_per_second('stock'):,.0f}",
            f"{r.tokens_per_second('fast'):,.0f}",
            "[green]ok[/]" if parity.passed else "[red]FAILED[/]",
        )
        rest.add_row(
            r.case,
            f"{parity.stock_error:.1e}",
            f"{parity.error:.1e}",
            f"{parity.times_stock:.2f}",
            f"{parity.cosine:.7f}",
            _mib(r.stock_memory),
            f"{_mib(r.fast_memory)} + {_mib(r.prepacked)}",
        )
    return speed, rest


def verify_table(rows: list[Row], model: str) -> Table:
    table = Table(
        title=f"parity of {model}: errors against stock in float64, real tokens and pooled output",
        caption="budget: root mean square error (rms) at most twice stock's, plus one rounding step; in float32 also a cosine of "
        "0.99999, in bfloat16 also the largest error at most twice stock's. The largest error in float32 is only shown.",
        box=box.SIMPLE_HEAD,
    )
    errors = ("rms stock", "rms ours", "max stock", "max ours", "max ratio", "1 - cosine")
    for name in ("batch", "padding", "dtype", *errors, ""):
        table.add_column(name, justify="left" if name in ("padding", "dtype", "") else "right")
    for row in rows:
        p = row.parity
        found = [f"{v:.0e}" for v in (p.stock_rms, p.rms, p.stock_error, p.error)]
        verdict = "[green]ok[/]" if p.passed else "[red]FAILED[/]"
        kind = {"float32": "fp32", "bfloat16": "bf16"}[row.dtype]
        numbers = (*found, f"{p.times_stock:.2f}", f"{1.0 - p.cosine:.0e}")
        table.add_row(f"{row.batch}x{row.length}", row.padding, kind, *numbers, verdict)
    return table


def plot(results: list[Result], environment: dict[str, Any], path: Path) -> None:
    """Speed-up of every case as horizontal bars with p20-p80 whiskers; losses in red; a line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 2.0 + 0.44 * len(results)), layout="constrained")
    ratios = [r.comparison.ratio for r in results]
    at = list(range(len(results)))[::-1]
    middle = [q.p50 for q in ratios]
    whiskers = [[q.p50 - q.p20 for q in ratios], [q.p80 - q.p50 for q in ratios]]
    axes.barh(at, middle, color=[_FAST if v >= 1 else _LOSS for v in middle], height=0.62, zorder=2)
    axes.errorbar(middle, at, xerr=whiskers, fmt="none", ecolor="#24292f", elinewidth=1, capsize=3, zorder=3)
    reach = max(1.0, *(q.p80 for q in ratios))
    for y, r in zip(at, results, strict=True):
        q = r.comparison.ratio
        label = f"{q.p50:.2f}x" + ("" if r.parity.passed else "  parity FAILED")
        colour = "black" if r.parity.passed and q.p50 >= 1 else _LOSS
        axes.text(q.p80 + reach * 0.015, y, label, va="center", fontsize=10, fontweight="bold", color=colour)
    axes.axvline(1, color="#24292f", linewidth=1, linestyle="--", zorder=4)
    axes.text(1 + reach * 0.01, len(results) - 0.5, "stock = 1", color=_STOCK, ha="left", va="bottom", fontsize=9)
    axes.set_yticks(at, [f"{r.case} ({r.padding:.0%} padding)" for r in results], fontsize=9.5)
    axes.set_xlim(0, reach * (1.12 if all(r.parity.passed for r in results) else 1.35))
    axes.set_ylim(-0.6, len(results) - 0.1)
    axes.set_xlabel("times as fast: median of pairwise ratios, whiskers p20 to p80", fontsize=9.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e6ea", zorder=0)
    title = "bertfast against stock transformers (sdpa), inference"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    foot = (
        f"{environment['processor']}, {environment['threads']} threads, {environment['kernels']} kernels, "
        f"torch {environment['torch']}, transformers {environment['transformers']}, commit {environment['commit']}"
    )
    figure.supxlabel(foot, fontsize=8, color=_STOCK, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
