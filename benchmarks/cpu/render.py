"""Tables and a picture of `Results`."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.cpu import plan
from benchmarks.cpu.run import COMPILED, INT8, OURS, PEERS, Measured, Results, Side, Verdict, verdicts
from bertfast.bench.protocol import Spread

_COLOURS = {
    "stock": "#8a8f98",
    "openvino": "#8250df",
    "onnxruntime": "#1a7f64",
    "stock compiled": "#bf8700",
    "bertfast compiled": "#1f6feb",
}
_LOSS, _TARGET = "#c4432b", "#24292f"
_WIDEST = 6.0  # ratios past this end at the edge of the picture, their figure beside them: the targets are below 3.1
_SHORT = {"float32": "fp32", "bfloat16": "bf16"}


def _peers(results: Results) -> tuple[str, ...]:
    """The sides that ours are compared with; compiled ones where they were asked for."""
    return *PEERS, *(side for side in COMPILED if any(side in m.sides for m in results.inference))


def _ratio(spread: Spread | None, least: float | None, reason: str | None = None) -> str:
    if spread is None:
        return "[red]failed[/]" if reason else "-"
    text = f"{spread.p50:.2f}x ({spread.p20:.2f}-{spread.p80:.2f})"
    if least is not None:
        return f"[{'green' if spread.p50 >= least else 'red'}]{text}[/] / {least:g}"
    return text if spread.p50 >= 1 else f"[red]{text}[/]"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def speed_table(results: Results) -> Table:
    table = Table(
        title="times as fast as each engine: median of turns (p20-p80) / target; real tokens only",
        caption="int8: our int8 mode against our bfloat16; matrix rate: useful FLOP/s over the machine's own products",
        box=box.SIMPLE_HEAD,
    )
    peers = _peers(results)
    for name in ("model", "dtype", "batch", "padding", *peers, "matrix rate", "int8"):
        table.add_column(name, justify="left" if name in ("model", "dtype", "batch") else "right")
    for m in results.inference:
        cells = []
        for peer in peers:
            side = m.sides.get(peer)
            least = plan.targets_of("speed", peer, m.dtype, m.row)
            cells.append(_ratio(side.ratio, least, side.reason) if side else "-")
        least = plan.targets_of("share of matrix rate", "machine", m.dtype, m.row)
        share = "-" if m.share is None else f"{m.share.p50:.0%}" + (f" / {least:.0%}" if least else "")
        int8 = m.sides.get(INT8)
        least = plan.targets_of("int8 speed", OURS, m.dtype, m.row)
        cells += [share, _ratio(int8.ratio, least, int8.reason) if int8 else "-"]
        table.add_row(m.model, _SHORT[m.dtype], m.row, f"{m.padding:.0%}", *cells)
    return table


def error_table(results: Results) -> Table:
    table = Table(
        title="errors against stock in float64 on real tokens (rms / largest, 1 - cosine); memory of a call + held between calls",
        box=box.SIMPLE_HEAD,
    )
    sides = (OURS, *_peers(results), INT8)
    for name in ("model", "dtype", "batch", *sides):
        table.add_column(name, justify="left" if name in ("model", "dtype", "batch") else "right")

    def cell(side: Side | None) -> str:
        if side is None or side.seconds is None:
            return "-"
        errors = "-" if side.cosine is None else f"{side.rms_error:.0e} / {side.max_error:.0e}\n{1 - side.cosine:.0e}"
        return f"{errors}\n{_mib(side.memory)} + {_mib(side.held)} MiB"

    for m in results.inference:
        table.add_row(m.model, _SHORT[m.dtype], m.row, *(cell(m.sides.get(side)) for side in sides))
    return table


def pair_table(results: Results) -> Table:
    table = Table(title="training steps against stock, and two threads against one", box=box.SIMPLE_HEAD)
    for name in ("what", "model", "dtype", "batch", "times as fast", "peak MiB", "stock's", "times less"):
        table.add_column(name, justify="right" if name not in ("what", "model", "dtype", "batch") else "left")
    for p in results.pairs:
        peer = "stock" if p.kind == "training" else "1 thread"
        least = plan.targets_of("training speed" if p.kind == "training" else "threads", peer, p.dtype, p.row)
        memory = ["-", "-", "-"]
        if p.kind == "training":
            times = p.memory_ratio
            memory = [_mib(p.our_memory), _mib(p.other_memory), "-" if times is None else f"{times:.2f}x / 2"]
        table.add_row(p.kind, p.model, _SHORT[p.dtype], p.row, _ratio(p.ratio, least), *memory)
    return table


def target_lines(results: Results) -> list[str]:
    """Targets missed one by one, and how many were met."""
    judged = verdicts(results)
    missed = [v for v in judged if not v.met]

    def line(v: Verdict) -> str:
        spread = "" if v.p20 is None else f" ({v.p20:.2f}-{v.p80:.2f})"
        where = f"{v.model} {_SHORT[v.dtype]} {v.row}"
        return f"[red]missed[/] {v.kind} against {v.peer}, {where}: {v.measured:.3g}{spread}, wanted {v.least:g}"

    return [f"[bold]{len(judged) - len(missed)} of {len(judged)} targets met[/]", *map(line, missed)]


def _panel(axis: Any, rows: list[Measured]) -> None:
    """Bars of one model and dtype, the first row on top; a red figure where a target is missed or a peer is faster."""
    peers = [p for p in (*PEERS, *COMPILED) if any(m.sides.get(p) and m.sides[p].ratio for m in rows)]
    height = 0.8 / max(1, len(peers))
    for i, m in enumerate(rows):
        for j, peer in enumerate(peers):
            side = m.sides.get(peer)
            if side is None or side.ratio is None:
                continue
            ratio, at = side.ratio, -i + 0.4 - (j + 0.5) * height
            shown = [min(value, _WIDEST) for value in (ratio.p20, ratio.p50, ratio.p80)]
            axis.barh(at, shown[1], height=height * 0.92, color=_COLOURS[peer], zorder=2)
            axis.plot([shown[0], shown[2]], [at, at], color=_TARGET, linewidth=1, zorder=3)
            least = plan.targets_of("speed", peer, m.dtype, m.row)
            if least is not None:
                axis.plot([least] * 2, [at - height * 0.45, at + height * 0.45], color=_TARGET, linewidth=2, zorder=4)
            colour = _LOSS if ratio.p50 < (least or 1.0) else "black"
            end = max(shown[2], shown[1], least or 0)
            axis.annotate(
                f"{ratio.p50:.2f}", (end, at), (4, 0), textcoords="offset points", va="center", fontsize=8, color=colour
            )
    axis.axvline(1, color=_TARGET, linewidth=1, linestyle="--", zorder=1)
    labels = [f"{m.row.removesuffix(' half')}\n{f'{m.padding:.0%} padding' if m.padding else 'full'}" for m in rows]
    axis.set_yticks([-i for i in range(len(rows))], labels, fontsize=8.5)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.08)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e3e6ea", zorder=0)
    axis.set_axisbelow(True)


def sentence_lines(results: Results) -> list[str]:
    return [
        f"int8, {s.row}: cosine to float64 of {s.model}'s sentence embeddings {s.mean:.4f} in the mean, "
        f"{s.p01:.4f} at the first percentile, {s.worst:.4f} at worst"
        for s in results.sentences
    ]


def plot(results: Results, environment: dict[str, Any], path: Path) -> None:
    """A panel for each model and dtype: a bar for each peer and row, whiskers p20 to p80, a tick at the target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((m.model, m.dtype) for m in results.inference))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    size = (max(8.0, 6.4 * columns), 1.4 + 4.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    for axis, (model, dtype) in zip(axes.flat, groups, strict=False):
        _panel(axis, [m for m in results.inference if (m.model, m.dtype) == (model, dtype)])
        axis.set_title(f"{model}, {_SHORT[dtype]}", loc="left", fontsize=10.5, fontweight="bold")
    peers = _peers(results)
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[p]) for p in peers]
    handles.append(plt.Line2D([], [], color=_TARGET, linewidth=2))
    labels = [*(f"times as fast as {p}" for p in peers), "target"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, fontsize=9, frameon=False)
    title = (
        f"bertfast beside other CPU engines, inference: {environment['processor']}, {environment['threads']} threads"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
