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
        "memory: resident peak of one call in MiB, + what the fast side keeps in prepacked weights; "
        "max error: against stock in float64, the batch where ours is largest beside stock's",
    )
    names = ("padding", "speed-up", "p20-p80", "tokens/s stock", "fast", "max error stock", "fast", "fast/stock")
    table.add_column("case")
    for name in (*names, "cosine", "memory stock", "fast", "parity"):
        table.add_column(name, justify="right", no_wrap=True)
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
            f"{r.parity.times_stock:.2f}",
            f"{r.parity.cosine:.7f}",
            _mib(r.stock_memory),
            f"{_mib(r.fast_memory)} + {_mib(r.prepacked)}",
            "[green]ok[/]" if r.parity.passed else "[red]FAILED[/]",
        )
    return table


def verify_table(rows: list[Row], model: str) -> Table:
    table = Table(title=f"parity of {model}: errors against stock in float64, real tokens and pooled output")
    errors = ("rms stock", "rms bertfast", "max stock", "max bertfast", "max ratio")
    for name in ("batch", "padding", "dtype", *errors, "cosine", "verdict"):
        table.add_column(name, justify="left" if name in ("padding", "dtype") else "right")
    for row in rows:
        p = row.parity
        verdict = "[green]ok[/]" if p.passed else "[red]FAILED[/]"
        errors_of = [f"{v:.2e}" for v in (p.stock_rms, p.rms, p.stock_error, p.error)]
        numbers = (*errors_of, f"{p.times_stock:.2f}", f"{p.cosine:.7f}")
        table.add_row(f"{row.batch}x{row.length}", row.padding, row.dtype, *numbers, verdict)
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
    axes.set_yticks(at, [f"{r.case}, {r.padding:.0%} padding" for r in results], fontsize=9.5)
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
