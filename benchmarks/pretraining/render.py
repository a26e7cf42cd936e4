"""Results of pre-training beside stock transformers, as tables and a picture."""

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.pretraining.measure import LEAST


def speed_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="pre-training step, real tokens a second: bertfast over stock transformers (sdpa)")
    for name in ("model", "length", "batch tokens", "dtype", "stock's padding", "ratio", "p20-p80", f">= {LEAST}"):
        table.add_column(name, justify="left" if name in ("model", "dtype") else "right")
    for r in rows:
        q = r["ratio"]
        met = "[green]yes[/]" if q["p50"] >= LEAST else "[red]no[/]"
        numbers = (f"{r['padding']:.0%}", f"{q['p50']:.2f}x", f"{q['p20']:.2f}-{q['p80']:.2f}", met)
        table.add_row(r["size"], str(r["length"]), str(r["tokens"]), r["dtype"], *numbers)
    return table


def convergence_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="the same seed and batches through stock and ours",
        caption="shares of the band: 1 is its edge. Judged are the band's own steps and the weights after all",
    )
    for name in (
        "model",
        "dtype",
        "steps",
        "loss at first",
        "at last",
        "loss / band",
        "over all",
        "weights / band",
        "",
    ):
        table.add_column(name, justify="right")
    for r in rows:
        shares = (f"{r[k]:.2f}" for k in ("loss_of_band", "loss_of_band_all_steps", "weights_of_band"))
        verdict = "[green]ok[/]" if r["passed"] else "[red]FAILED[/]"
        losses = (f"{r['ours'][0]:.3f}", f"{r['ours'][-1]:.3f}")
        table.add_row(r["size"], r["dtype"], str(r["steps"]), *losses, *shares, verdict)
    return table


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios as bars, and both loss curves over one another with their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, curves = found["speed"], found["convergence"]
    figure, axes = plt.subplots(1, 1 + len(curves), figsize=(5.2 * (1 + len(curves)), 4.4), layout="constrained")
    bars, *others = axes
    at = range(len(rows))[::-1]
    ratios = [r["ratio"] for r in rows]
    middle = [q["p50"] for q in ratios]
    bars.barh(at, middle, color=["#1f6feb" if m >= LEAST else "#8a8f98" for m in middle], zorder=2)
    spread = [[q["p50"] - q["p20"] for q in ratios], [q["p80"] - q["p50"] for q in ratios]]
    bars.errorbar(middle, at, xerr=spread, fmt="none", ecolor="#24292f", capsize=3, zorder=3)
    for y, q in zip(at, ratios, strict=True):
        bars.text(q["p80"] + 0.06, y, f"{q['p50']:.2f}x", va="center", fontsize=9, fontweight="bold")
    bars.axvline(1, color="#24292f", linewidth=1, linestyle="--")
    bars.axvline(LEAST, color="#c4432b", linewidth=1, linestyle=":")
    bars.set_yticks(
        at, [f"{r['size']}, {r['length']}, {r['dtype']}\n{r['padding']:.0%} padding" for r in rows], fontsize=8.5
    )
    bars.set_xlim(0, max(q["p80"] for q in ratios) * 1.15)
    bars.set_title("real tokens/s over stock's (dotted: asked for)", fontsize=10)
    for axis, r in zip(others, curves, strict=True):
        axis.plot(r["stock"], color="#8a8f98", linewidth=3.5, label="stock transformers")
        axis.plot(r["ours"], color="#1f6feb", linewidth=1.2, label="bertfast")
        axis.set_title(f"{r['dtype']}: largest {r['loss_of_band']:.2f} of the band", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel("MLM + NSP loss")
        axis.legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e3e6ea", zorder=0)
    about = found["environment"]
    figure.supxlabel(
        f"{about['processor']}, {about['threads']} threads, commit {about['commit']}", fontsize=8, color="#8a8f98"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
