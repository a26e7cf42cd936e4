"""RUN/curves.png: losses and accuracies over steps, training beside held-out data."""

from pathlib import Path
from typing import Any

_COLOURS = ("#1f6feb", "#c4432b", "#2f8f4e", "#8250df", "#b08800")
# The last part of a figure's name says in which panel it belongs and how its axis is labelled.
_PANELS = (
    (("loss",), "loss (nats a target)"),
    (("accuracy", "f1", "exact", "matthews"), "share right"),
)


def _series(
    lines: list[dict[str, Any]], event: str, endings: tuple[str, ...]
) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        if line["event"] != event:
            continue
        for name, value in line.items():
            if name.endswith(endings) and isinstance(value, (int, float)):
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return found


def _stem(name: str) -> str:
    """What a figure is of: "mlm" for mlm_loss and mlm_accuracy, which then have one colour."""
    return name.rpartition("_")[0]


def draw(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the lines of a journal; nothing where there are none. ImportError names the extra that has matplotlib."""
    panels = [(label, _series(lines, "train", ends), _series(lines, "eval", ends)) for ends, label in _PANELS]
    panels = [panel for panel in panels if panel[1] or panel[2]]
    if not panels:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the curves of a run need matplotlib: pip install 'bertfast[train]'") from None
    figure = Figure(figsize=(6.2 * len(panels), 4.2), layout="constrained")
    stems = sorted({_stem(name) for _, *series in panels for each in series for name in each})
    colours = dict(zip(stems, _COLOURS * 4, strict=False))
    for axes, (label, train, held_out) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (steps, values) in train.items():
            axes.plot(steps, values, color=colours[_stem(name)], linewidth=1.4, label=name.replace("_", " "))
        for name, (steps, values) in held_out.items():
            style = {"marker": "o", "markersize": 4, "linewidth": 1.0, "linestyle": "--"}
            axes.plot(steps, values, color=colours[_stem(name)], label=f"{name.replace('_', ' ')}, held out", **style)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)
