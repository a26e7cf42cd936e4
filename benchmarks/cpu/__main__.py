"""`python -m benchmarks.cpu`: bertfast beside stock PyTorch, OpenVINO and ONNX Runtime on this processor."""

import importlib.metadata
import json
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


def main(
    model: Annotated[list[str] | None, typer.Option(help="bert-base or minilm; all by default")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; all by default")] = None,
    row: Annotated[list[str] | None, typer.Option(help="such as 1x16 or '16x128 half'; all by default")] = None,
    turns: Annotated[int, typer.Option(min=1, help="turns of each side on each row")] = 7,
    inference: Annotated[bool, typer.Option(help="the table of inference")] = True,
    training: Annotated[bool, typer.Option(help="steps of pre-training against stock")] = True,
    threads: Annotated[bool, typer.Option(help="one thread against two")] = True,
    json_path: Annotated[Path, typer.Option("--json", help="where the results go")] = RESULTS / "cpu_peers.json",
    plot: Annotated[Path, typer.Option(help="where the picture goes")] = RESULTS / "cpu_peers.png",
) -> None:
    """Time the engines in turns, check their errors against float64 and say which targets are met."""
    console = Console()
    models = _chosen(model, plan.MODELS, "model")
    dtypes = _chosen(dtype, plan.DTYPES, "dtype")
    names = _chosen(row, tuple(r.name for r in plan.ROWS), "row")
    rows = [r for r in plan.ROWS if r.name in names]
    versions = _versions()
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        console.print(f"going on without {' and '.join(missing)}: {EXTRA} installs them", markup=False)
    about: dict[str, Any] = {**environment(), "peers": versions, "turns": turns}
    results = run.Results()
    with console.status("starting") as status:
        try:
            for name in models if inference else ():
                for kind in dtypes:
                    run.inference(name, kind, rows, turns, results, status.update)
            for kind in dtypes if threads else ():
                for name in models:
                    run.threads(name, kind, turns, results, status.update)
            for kind in dtypes if training else ():
                run.training(kind, list(plan.TRAINING_ROWS), turns, results, status.update)
        except KeyboardInterrupt:
            results.problems.append("interrupted: the rows after this are missing")
        except BenchError as error:
            results.problems.append(str(error))
    if results.inference:
        console.print(render.speed_table(results), render.error_table(results))
        render.plot(results, about, plot)
    if results.pairs:
        console.print(render.pair_table(results))
    for line in render.target_lines(results):
        console.print(line)
    for problem in results.problems:
        console.print(f"note: {problem}", markup=False)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(results.to_dict(about), indent=1) + "\n")
    console.print(f"written: {json_path}" + (f" and {plot}" if results.inference else ""), markup=False)
    if not results.inference and not results.pairs:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
