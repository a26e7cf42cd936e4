"""How results are shown: rich tables and a bar chart."""

from pathlib import Path
from typing import Any

from rich.table import Table

from bertfast.bench.run import Result
from bertfast.bench.verify import Row

_STOCK, _FAST, _LOSS = "#8a8f98", "#1f6feb", "#c4432b"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def bench_table(results: list[Result], environment: dict[str, Any]) -> Table:
    """One row a case; ratios first, since absolute figures of a CPU belong to that machine alone."""
    table = Table(
        title=f"stock (sdpa) against bertfast on {environment['processor']}, {environment['threads']} threads",
        caption="speed-up: median of pairwise ratios (p20-p80); tokens/s: real tokens only, this machine only; "
        "memory: resident peak of one call in MiB; error: largest, against stock in float64",
    )
    for name in ("case", "padding", "speed-up", "p20-p80", "tokens/s stock", "fast", "error stock", "fast ", "cosine", "memory stock", "fast  ", "parity"):
        table.add_column(name, justify="left" if name == "case" else "right", no_wrap=name != "case")
    for r in results:
        ratio = r.comparison.ratio
        table.add_row(
            r.case,
            f"{r.padding:.0%}",
            f"[bold]{ratio.p50:.2f}x[/]" if ratio.p50 >= 1 else f"[red]{ratio.p50:.2f}x[/]",
            f"{ratio.p20:.2f}-{ratio.p80:.2f}",
            f"{r.tokens_per_second('stock'):,.0f}",
            f"{r.tokens_per_second('fast'):,.0f}",
            f"{r.parity.stock_error:.1e}",
            f"{r.parity.error:.1e}",
            f"{r.parity.cosine:.7f}",
            _mib(r.stock_memory),
            _mib(r.fast_memory),
            "[green]ok[/]" if r.parity.passed else "[red]FAILED[/]",
        )
    return table


def verify_table(rows: list[Row], model: str) -> Table:
    table = Table(title=f"parity of {model}: largest error against stock in float64, real tokens and pooled output")
    for name in ("batch", "padding", "dtype", "stock", "bertfast", "allowed", "cosine", "verdict"):
        table.add_column(name, justify="left" if name in ("padding", "dtype") else "right")
    for row in rows:
        p = row.parity
        verdict = "[green]ok[/]" if p.passed else "[red]FAILED[/]"
        numbers = (f"{p.stock_error:.2e}", f"{p.error:.2e}", f"{p.budget:.2e}", f"{p.cosine:.7f}")
        table.add_row(f"{row.batch}x{row.length}", row.padding, row.dtype, *numbers, verdict)
    return table


def plot(results: list[Result], environment: dict[str, Any], path: Path) -> None:
    """Speed-up of every case as horizontal bars with p20-p80 whiskers; losses in red; a line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.46 * len(results)), layout="constrained")
    ratios = [r.comparison.ratio for r in results]
    at = list(range(len(results)))[::-1]
    whiskers = [[q.p50 - q.p20 for q in ratios], [q.p80 - q.p50 for q in ratios]]
    colours = [_FAST if q.p50 >= 1 else _LOSS for q in ratios]
    axes.barh(at, [q.p50 for q in ratios], color=colours, height=0.62, zorder=2)
    axes.errorbar([q.p50 for q in ratios], at, xerr=whiskers, fmt="none", ecolor="#24292f", elinewidth=1, capsize=3, zorder=3)
    reach = max(q.p80 for q in ratios)
    for y, q in zip(at, ratios, strict=True):
        axes.text(q.p80 + reach * 0.015, y, f"{q.p50:.2f}x", va="center", fontsize=10, fontweight="bold")
    axes.axvline(1, color=_STOCK, linewidth=1.2, linestyle="--", zorder=1)
    axes.text(1, len(results) - 0.45, "stock", color=_STOCK, ha="center", va="bottom", fontsize=9)
    axes.set_yticks(at, [f"{r.case}  ({r.padding:.0%} padding)" for r in results], fontsize=9.5)
    axes.set_xlim(0, reach * 1.12)
    axes.set_ylim(-0.6, len(results) - 0.1)
    axes.set_xlabel("speed-up over stock transformers (sdpa): median of pairwise ratios, whiskers p20-p80")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e6ea", zorder=0)
    axes.set_title("bertfast against stock BERT, inference, real tokens", loc="left", fontsize=13, fontweight="bold", pad=16)
    foot = (
        f"{environment['processor']}, {environment['threads']} threads, {environment['kernels']} kernels, torch {environment['torch']}, "
        f"transformers {environment['transformers']}, commit {environment['commit']}"
    )
    figure.supxlabel(foot, fontsize=8, color=_STOCK, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
