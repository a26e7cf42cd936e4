"""fill-mask: the likeliest words at each mask of a text."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bertfast.cli.common import console, notes
from bertfast.cli.flags import simple
from bertfast.cli.loading import DEVICE, chosen_device, mistakes
from bertfast.options import option


@dataclass(kw_only=True)
class FillMaskOptions:
    """What `bertfast fill-mask` takes."""

    model: Path = option(help="folder of a model with a masked-LM head", argument=True)
    text: str = option(help='text with one or more masks: "Paris is the [MASK] of France."', argument=True)
    top: int = option(5, "pieces shown for each mask", low=1)
    json: bool = option(False, "print JSON", flags=("--json",))
    device: str = DEVICE


@notes()
def _run(options: FillMaskOptions) -> None:
    at = chosen_device(options.device)
    with mistakes(at):
        from bertfast.tasks import fill_mask as masks

        found = masks.fill_masks(*masks.load_masked_lm(options.model, at), options.text, options.top)
    if options.json:
        rows = [
            [{"piece": g.piece, "probability": g.probability, "text": g.text} for g in guesses] for guesses in found
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for number, guesses in enumerate(found, 1):
        table = Table(title=f"mask {number} of {len(found)}" if len(found) > 1 else None)
        for column in ("piece", "probability", "text"):
            table.add_column(column, justify="right" if column == "probability" else "left")
        for guess in guesses:
            table.add_row(guess.piece, f"{guess.probability:.4f}", guess.text)
        console.print(table, markup=False)


fill_mask = simple(
    "fill_mask", FillMaskOptions, _run, "Say which words are likeliest at each [MASK] of a text, English or Japanese."
)
