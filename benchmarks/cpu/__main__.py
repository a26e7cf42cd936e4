"""`python -m benchmarks.cpu`: bertfast beside stock PyTorch, OpenVINO and ONNX Runtime on this processor."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cpu import plan, render, run
from benchmarks.cpu.sides import EXTRA
from bertfast.bench.cases import BenchError
from bertfast.bench.run import environment

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("onnxruntime", "onnx", "openvino")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _chosen(asked: list[str] | None, known: tuple[str, ...], what: str) -> list[str]:
    unknown = [name for name in asked or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    return list(dict.fromkeys(asked)) if asked else list(known)


def _run(
    models: list[str], dtypes: list[str], rows: list[plan.Row], turns: int, parts: set[str], results: run.Results,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Fills `results`; what stops it is noted there."""
    try:
        for name in models if "inference" in parts else ():
            for kind in dtypes:
                run.inference(name, kind, rows, turns, results, note, compiled="compiled" in parts)
        for kind in dtypes if "threads" in parts else ():
            for name in models:
                run.threads(name, kind, turns, results, note)
        for kind in dtypes if "training" in parts else ():
            run.training(kind, list(plan.TRAINING_ROWS), turns, results, note)
    except KeyboardInterrupt:
        results.problems.append("interrupted: the rows after this are missing")
    except BenchError as error:
        results.problems.append(str(error))


def _show(results: run.Results, about: dict[str, Any], json_path: Path, plot: Path, console: Console) -> None:
    """Writes the files first: a terminal that is gone must not cost the figures."""
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(results.to_dict(about), indent=1) + "\n")
    if results.inference:
        render.plot(results, about, plot)
        console.print(render.speed_table(results), render.error_table(results))
    if results.pairs:
        console.print(render.pair_table(results))
    for line in [*render.sentence_lines(results), *render.target_lines(results)]:
        console.print(line)
    for problem in results.problems:
        console.print(f"note: {problem}", markup=False)
    console.print(f"written: {json_path}" + (f" and {plot}" if results.inference else ""), markup=False)


def main(
    model: Annotated[list[str] | None, typer.Option(help="bert-base or minilm; all by default")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; all by default")] = None,
    row: Annotated[list[str] | None, typer.Option(help="such as 1x16 or '16x128 half'; all by default")] = None,
    turns: Annotated[int, typer.Option(min=1, help="turns of each side on each row")] = 7,
    brief: Annotated[bool, typer.Option(help="three turns, and the rows 1x16, 16x128 and 16x128 half")] = False,
    inference: Annotated[bool, typer.Option(help="the table of inference")] = True,
    compiled: Annotated[
        bool, typer.Option(help="beside torch.compile of stock and of ours: minutes more, a graph for each row")
    ] = False,
    training: Annotated[bool, typer.Option(help="steps of pre-training against stock")] = True,
    threads: Annotated[bool, typer.Option(help="one thread against two")] = True,
    json_path: Annotated[Path, typer.Option("--json", help="where the results go")] = RESULTS / "cpu_peers.json",
    plot: Annotated[Path, typer.Option(help="where the picture goes")] = RESULTS / "cpu_peers.png",
) -> None:
    """Time the engines in turns, check their errors against float64 and say which targets are met."""
    console = Console(width=None if Console().is_terminal else 160)
    names = _chosen(row or (list(plan.BRIEF) if brief else None), tuple(r.name for r in plan.ROWS), "row")
    rows = [r for r in plan.ROWS if r.name in names]
    turns = min(turns, 3) if brief else turns
    versions = _versions()
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        console.print(f"going on without {' and '.join(missing)}: {EXTRA} installs them", markup=False)
    about: dict[str, Any] = {**environment(), "peers": versions, "turns": turns}
    asked = {"inference": inference, "training": training, "threads": threads, "compiled": compiled}
    results = run.Results()
    models, dtypes = _chosen(model, plan.MODELS, "model"), _chosen(dtype, plan.DTYPES, "dtype")
    with console.status("starting") as status:
        _run(models, dtypes, rows, turns, {part for part, yes in asked.items() if yes}, results, status.update)
    _show(results, about, json_path, plot, console)
    if not results.inference and not results.pairs:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
