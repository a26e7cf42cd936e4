"""`python -m benchmarks.pretraining`: our pre-training step beside stock transformers', on one corpus and from one seed.

`speed`: both loops take turns, a step each, on batches of as many tokens: stock pads to the longest of a batch, ours packs.
`convergence`: both start from the same weights and see the same batches, dropout off (its bits differ); loss curves and weights
must stay within the bands that Liger-Kernel's convergence tests use.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.pretraining import measure, render
from bertfast.bench.run import environment
from bertfast.data.corpus import Corpus, CorpusError
from bertfast.data.tokenizer import load_tokenizer

RESULTS = Path(__file__).parents[1] / "results"


def main(
    corpus: Annotated[Path, typer.Argument(help="folder that `bertfast data build` wrote")],
    only: Annotated[str | None, typer.Option(help="speed or convergence; both where not given")] = None,
    size: Annotated[list[str] | None, typer.Option(help=f"rows of this model: {', '.join(measure.SIZES)}")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(measure.DTYPES)}")] = None,
    turns: Annotated[int, typer.Option(min=1, help="counted steps of each side in a row of speed")] = 25,
    steps: Annotated[int, typer.Option(min=1, help="steps of the loss curves")] = 100,
    out: Annotated[Path, typer.Option(help="folder for pretraining.json, and pretraining.png of both")] = RESULTS,
) -> None:
    """Pre-training beside stock transformers. Exit status 1 where a loss curve leaves its band."""
    for option, given, known in (
        ("--only", [only] if only else [], ("speed", "convergence")),
        ("--size", size or [], tuple(measure.SIZES)),
        ("--dtype", dtype or [], measure.DTYPES),
    ):
        if unknown := [name for name in given if name not in known]:
            raise typer.BadParameter(f"{option} {unknown[0]}: choose one of {', '.join(known)}")
    try:
        data = Corpus.open(corpus)
    except CorpusError as error:
        raise typer.BadParameter(str(error)) from None
    tokenizer = load_tokenizer(corpus / "tokenizer")
    found: dict[str, Any] = {"environment": environment(), "corpus": data.manifest, "speed": [], "convergence": []}
    console = Console(width=None if Console().is_terminal else 150)
    for kind in dtype or measure.DTYPES:
        for row in measure.ROWS if only != "convergence" else ():
            if not size or row.size in size:
                found["speed"].append(measure.speed(data, tokenizer, row, kind, turns))
                console.print(
                    f"{row.size} {row.length} {kind}: {found['speed'][-1]['ratio']['p50']:.2f}x", highlight=False
                )
        if only != "speed":
            found["convergence"].append(measure.convergence(data, tokenizer, kind, steps))
    out.mkdir(parents=True, exist_ok=True)
    (out / "pretraining.json").write_text(json.dumps(found, indent=1) + "\n")
    for rows, table in ((found["speed"], render.speed_table), (found["convergence"], render.convergence_table)):
        if rows:
            console.print(table(rows))
    written = [out / "pretraining.json"]
    if found["speed"] and found["convergence"]:
        written.append(out / "pretraining.png")
        render.plot(found, written[-1])
    console.print(f"wrote {', '.join(map(str, written))}", highlight=False)
    if not all(r["passed"] for r in found["convergence"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
