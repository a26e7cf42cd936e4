"""The command line: doctor, verify, bench. Thin: it parses, calls, prints, and turns mistakes into one line."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import bertfast

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fused kernels and unpadding for BERT encoders.")
# Tables keep their columns when the output is a file or a pipe.
console = Console(width=None if Console().is_terminal else 190)


def _fail(message: str) -> typer.Exit:
    Console(stderr=True).print(f"bertfast: {message}", style="red", highlight=False, markup=False)
    return typer.Exit(2)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"wrote {path}", highlight=False)


def _version(value: bool) -> None:
    if value:
        print(bertfast.__version__)
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Fused kernels and unpadding for BERT encoders: the same numbers, faster."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Say which implementation owns each (op, device), what is slow here and why, and how to mend it."""
    from bertfast.doctor import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts["versions"].items():
        console.print(f"{name:14}{value or 'not installed'}", highlight=False)
    built = facts["extension"]
    console.print(f"{'C++ kernels':14}" + (f"{built['isa']}, built for torch {built['torch']}" if built else facts["extension_absent"]), highlight=False)
    console.print(f"{'threads':14}{facts['threads']}\n{'GPU':14}{facts['gpu'] or 'none seen'}", highlight=False)
    table = Table(title="owners", caption="CUDA: no kernel has landed or run on a GPU yet; models there stay stock")
    for column in ("op", "CPU", "CUDA"):
        table.add_column(column)
    for name, owners in facts["owners"].items():
        table.add_row(name, owners["CPU"], owners["CUDA"])
    console.print(table)
    if not facts["slow"]:
        console.print("nothing is slow here for a reason that bertfast knows")
    for item in facts["slow"]:
        console.print(f"slow: {item['what']}, because {item['why']}. To mend it: {item['mend']}", highlight=False, markup=False)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="folder of a BERT checkpoint, 'minilm', or a preset such as bert-base")],
    json_path: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Check a checkpoint against the stock model over shapes, paddings and dtypes. Exit status 1 where any row fails."""
    from bertfast.bench.cases import BenchError
    from bertfast.bench.render import verify_table
    from bertfast.bench.run import Models
    from bertfast.bench.verify import verify as rows_of

    try:
        with console.status("comparing"):
            rows = list(rows_of(Models(model)))
    except BenchError as error:
        raise _fail(str(error)) from None
    console.print(verify_table(rows, model))
    failed = sum(not row.parity.passed for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} rows within the budget", highlight=False)
    if json_path:
        _write_json(json_path, [row.to_dict() for row in rows])
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="folder of a BERT checkpoint, 'minilm', or a preset; none runs the default suite")] = None,
    device: Annotated[str, typer.Option(help="only cpu for now")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="sequences in a batch")] = 16,
    length: Annotated[int, typer.Option(min=1, help="tokens a sequence is padded to")] = 128,
    padding: Annotated[float, typer.Option(help="mean share of padding, 0 to below 1")] = 0.5,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="counted rounds of each case")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="write results here")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a PNG here (needs matplotlib)")] = None,
) -> None:
    """Time stock against fast, taking turns, after checking parity. Exit status 1 where parity fails."""
    from dataclasses import replace

    from bertfast.bench import cases as case_list
    from bertfast.bench import render, run

    if device != "cpu":
        raise _fail(f"--device {device}: only cpu can be measured, no GPU kernel has landed yet")
    if dtype not in case_list.DTYPES:
        raise _fail(f"--dtype {dtype}: choose one of {', '.join(case_list.DTYPES)}")
    if threads:
        torch.set_num_threads(threads)
    try:
        loaded: dict[str, run.Models] = {}
        if model is None:
            todo = case_list.default_cases()
        else:
            loaded[model] = run.Models(model)
            if length > loaded[model].positions:
                raise _fail(f"--length {length}: {model} has {loaded[model].positions} positions")
            data = case_list.random_batch(loaded[model].vocabulary, batch, length, padding)
            name = f"{Path(model).name} {batch}x{length}, {dtype}"
            todo = [case_list.Case(name, model, dtype, (data,), runs=7)]
        results = []
        for case in todo:
            case = case if runs is None else replace(case, runs=runs)
            with console.status(case.name):
                result = run.run_case(case, loaded.get(case.model) or loaded.setdefault(case.model, run.Models(case.model)))
            ratio = result.comparison.ratio
            console.print(f"{case.name}: {ratio.p50:.2f}x, parity {'ok' if result.parity.passed else 'FAILED'}", highlight=False)
            results.append(result)
    except case_list.BenchError as error:
        raise _fail(str(error)) from None
    environment = run.environment()
    console.print(render.bench_table(results, environment))
    if json_path:
        _write_json(json_path, {"environment": environment, "results": [r.to_dict() for r in results]})
    if plot:
        try:
            render.plot(results, environment, plot)
        except ImportError:
            raise _fail("--plot needs matplotlib: pip install 'bertfast[plot]'") from None
        console.print(f"wrote {plot}", highlight=False)
    if not all(r.parity.passed for r in results):
        raise typer.Exit(1)
