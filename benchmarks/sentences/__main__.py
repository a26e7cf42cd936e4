"""`python -m benchmarks.sentences [TEXT]`: encode and predict of sentence-transformers, optimised, beside its own backends."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.sentences import inputs, render, run
from bertfast.bench.cases import BenchError
from bertfast.bench.run import environment

RESULTS = Path(__file__).parents[1] / "results"
DTYPES = {"encode": ("float32", "bfloat16", "int8"), "predict": ("float32", "bfloat16")}


def _measure(
    results: run.Results,
    workers: run.Workers,
    sources: dict[str, tuple[Path, int]],
    dtypes: list[str],
    options: dict[str, Any],
    scratch: Path,
) -> None:
    folders = inputs.checkpoints(scratch)
    for task, (path, count) in sources.items():
        items = inputs.sentences(path, count) if task == "encode" else inputs.pairs(path, count)
        file = scratch / f"{task}.json"
        file.write_text(json.dumps(items), encoding="utf-8")
        (scratch / "calibration.json").write_text(json.dumps(inputs.spread(list(items), 300)), encoding="utf-8")
        for dtype in DTYPES[task]:
            if dtype in dtypes:
                row = run.Row(task, dtype, path.name, len(items))
                results.rows.append(row)
                run.measure(row, workers, file, folders[task], scratch, **options)


def main(
    text: Annotated[Path, typer.Argument(help="a .txt, .tsv (first column) or SQuAD .json file")] = inputs.SHIPPED,
    pairs: Annotated[
        Path | None,
        typer.Option(help="a SQuAD .json file, or text whose neighbouring sentences are pairs; TEXT by default"),
    ] = None,
    sentences: Annotated[int, typer.Option(min=8, help="how many to encode")] = 2000,
    pair_count: Annotated[int, typer.Option(min=8, help="how many pairs to score")] = 300,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16 or int8; all by default")] = None,
    turns: Annotated[int, typer.Option(min=1, help="turns of each side on each row")] = 3,
    onnx_python: Annotated[str | None, typer.Option(help="a Python with sentence-transformers[onnx]")] = None,
    openvino_python: Annotated[str | None, typer.Option(help="a Python with sentence-transformers[openvino]")] = None,
    exports: Annotated[Path | None, typer.Option(help="keep what the backends export here, for the next run")] = None,
    json_path: Annotated[Path, typer.Option("--json", help="where the results go")] = RESULTS / "sentences.json",
    plot: Annotated[Path, typer.Option(help="where the picture goes")] = RESULTS / "sentences.png",
) -> None:
    """Compare each backend with float64, time them in turns, and say which targets are met.

    Ctrl-C writes what was measured. Exit status 1 where our numbers are outside the error budget.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = run.Results()
    pythons = {name: path for name, path in (("onnx", onnx_python), ("openvino", openvino_python)) if path}
    about = {**environment(), "turns": turns}
    sources = {"encode": (text, sentences), "predict": (pairs or text, pair_count)}
    dtypes = dtype or list(DTYPES["encode"])
    unknown = [name for name in dtypes if name not in DTYPES["encode"]]
    if unknown:
        raise typer.BadParameter(f"there is no dtype {unknown[0]!r}; there are {', '.join(DTYPES['encode'])}")
    with tempfile.TemporaryDirectory() as temporary, console.status("starting") as status:
        scratch = exports or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        workers = run.Workers(pythons)
        options = {"threads": torch.get_num_threads(), "turns": turns, "note": status.update}
        try:
            _measure(results, workers, sources, dtypes, options, scratch)
        except KeyboardInterrupt:
            results.problems.append("interrupted: the rows after this are missing")
        except BenchError as error:
            results.problems.append(str(error))
        finally:
            workers.close()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(results.to_dict(about), indent=1) + "\n")  # first: a terminal may be gone
    if any(row.ratios for row in results.rows):
        render.plot(results, about, plot)
    console.print(render.speed_table(results), render.quality_table(results))
    for line in render.notes(results):
        console.print(line, markup=False)
    console.print(f"written: {json_path}", markup=False)
    if results.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
