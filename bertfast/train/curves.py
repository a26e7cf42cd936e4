"""RUN/curves.png: losses and accuracies over steps, training beside held-out data."""

import itertools
import math
from pathlib import Path
from typing import Any

from bertfast._extras import install

_COLOURS = (
    "#1f6feb", "#c4432b", "#2f8f4e", "#8250df", "#b08800", "#0a7d8c", "#d0408f", "#7a4a21", "#5b6570", "#86b300",
)  # fmt: skip
# The last part of a figure's name says in which panel it belongs and how its axis is labelled.
_LOSS = (("loss",), "loss (nats a target)")
_SHARES = (("accuracy", "f1", "matthews", "pearson", "spearman"), "score (1: all right)")
_PERCENT = (("exact", "f1"), "score (100: all right)")
# What one reaches who does not read: half of the pairs follow on one another.
_CHANCE = {"nsp_loss": math.log(2), "nsp_accuracy": 0.5}


def _panels(lines: list[dict[str, Any]]) -> list[tuple[tuple[str, ...], str]]:
    """The panels of a run. SQuAD's scores, which come with an exact one, are percentages."""
    terms = sorted({name for line in lines for name in line if name.endswith("_loss")})
    # Terms differ in scale, and the sum that "loss" is says nothing that they do not say.
    losses = [((name,), f"{_said(name)} (nats a target)") for name in terms] or [_LOSS]
    answers = any(line["event"] == "eval" and "exact" in line for line in lines)
    return [*losses, _PERCENT if answers else _SHARES]


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
    return name.removesuffix("_loss").removesuffix("_accuracy")


def _said(name: str) -> str:
    return name.replace("_", " ").replace("mlm", "MLM").replace("nsp", "NSP")


def draw(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the lines of a journal; nothing where there are none. ImportError names the extra that has matplotlib."""
    panels = [(label, _series(lines, "train", ends), _series(lines, "eval", ends)) for ends, label in _panels(lines)]
    panels = [panel for panel in panels if panel[1] or panel[2]]
    if not panels:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"the curves of a run need matplotlib: {install('train')}") from None
    figure = Figure(figsize=(5.4 * len(panels), 4.6), layout="constrained")
    # A figure has one colour in training and on held-out data, and a loss that of its accuracy.
    stems = dict.fromkeys(_stem(name) for _, *both in panels for series in both for name in series)
    colours = dict(zip(stems, itertools.cycle(_COLOURS), strict=False))
    for axes, (label, train, held_out) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (steps, values) in train.items():
            alone = "o" if len(steps) == 1 else None  # a line needs two
            axes.plot(
                steps, values, color=colours[_stem(name)], linewidth=1.4, marker=alone, label=f"{_said(name)}, training"
            )
        for name, (steps, values) in held_out.items():
            style = {"marker": "o", "markersize": 4, "linewidth": 1.0, "linestyle": "--"}
            axes.plot(steps, values, color=colours[_stem(name)], label=f"{_said(name)}, held out", **style)
        for name in _CHANCE:
            if name in train or name in held_out:
                axes.axhline(
                    _CHANCE[name], color="#5b6570", linewidth=1.0, linestyle=":", label=f"{_said(name)} by chance"
                )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
        # Under the axes, where it hides no curve.
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)
