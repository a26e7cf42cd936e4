"""doctor, verify and bench: what runs here, whether the numbers are the same, and how much faster."""

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from bertfast._extras import install
from bertfast.cli.common import check_target, console, fail, write_json
from bertfast.cli.flags import simple
from bertfast.options import option


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print all of it as JSON")] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="print what runs on GPUs even where none is seen, from committed results")
    ] = False,
) -> None:
    """Say what is slow here, why and how to fix it, and which implementation owns each (op, device)."""
    from bertfast.doctor import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    if not facts["slow"]:
        console.print("nothing is slow here for a reason that bertfast knows")
    for item in facts["slow"]:
        line = f"slow: {item['what']}, because {item['why']}. To fix it: {item['fix']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _print_machine(facts)
    shows_gpu = gpu or facts["gpu"] is not None
    table = Table(
        title="owners", caption="CUDA: see the table of GPU ops for where the kernels run" if shows_gpu else None
    )
    for column in ("op", "CPU", "CUDA") if shows_gpu else ("op", "CPU"):
        table.add_column(column)
    for name, owners in facts["owners"].items():
        table.add_row(name, owners["CPU"], *([owners["CUDA"]] if shows_gpu else []))
    console.print(table)
    if shows_gpu:
        _print_gpus(facts)
    else:
        console.print("no GPU is seen; --gpu prints what runs on those with committed results", highlight=False)


def _print_machine(facts: dict[str, Any]) -> None:
    """Versions, kernels, processor, threads and GPU, one a line."""
    for name, value in facts["versions"].items():
        console.print(f"{name:14}{value or 'not installed'}", highlight=False)
    built = facts["extension"]
    kernels = facts["extension_absent"]
    if built:
        kernels = f"{built['isa']}, built by compiler {built['compiler']} for torch {built['torch']}"
    features = ", ".join(name for name, has in facts["features"].items() if has)
    for name, value in (
        ("C++ kernels", kernels),
        ("processor", facts["processor"] + (f" ({features})" if features else "")),
        ("threads", f"{facts['threads']} of {facts['cores']} cores"),
        ("GPU", facts["gpu"] or "none seen"),
    ):
        console.print(f"{name:14}{value}", highlight=False)


def _print_gpus(facts: dict[str, Any]) -> None:
    """By architecture a table of ops, and what Hugging Face models do there."""
    for arch, ops in facts["gpu_ops"].items():
        table = Table(title=f"GPU ops on {arch}{'' if facts['gpu'] else ' (no GPU is seen here)'}")
        for column in ("op", "runs", "why"):
            table.add_column(column, overflow="fold")
        for op, row in ops.items():
            table.add_row(op, row["runs"], row["why"] + (f". Note: {row['note']}" if "note" in row else ""))
        console.print(table)
        for dtype, text in facts["gpu_models"][arch].items():
            console.print(f"A Hugging Face model in {dtype} on {arch}: {text}", highlight=False, markup=False)


def _warn_fallback(ran: Any) -> None:
    """Parity says little about modules that ran stock code on both sides."""
    if ran.fast < ran.total or not ran.total:
        why = "; ".join(ran.reasons) or "no module of a known family was found"
        console.print(
            f"note: {ran.fast} of {ran.total} modules took the fast path: {why}", style="yellow", markup=False
        )


def verify(
    model: Annotated[
        str, typer.Argument(help="folder of a checkpoint of a known family, 'minilm', or a preset such as bert-base")
    ],
    json_path: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Check a checkpoint against the stock model over shapes, paddings and dtypes. Exit status 1 if any row fails."""
    from bertfast.bench.cases import BenchError
    from bertfast.bench.render import verify_table
    from bertfast.bench.run import Models, coverage
    from bertfast.bench.verify import verify as rows_of

    check_target("--json", json_path)
    try:
        with console.status("comparing"):
            models = Models(model)
            rows = list(rows_of(models))
    except BenchError as error:
        raise fail(str(error)) from None
    console.print(verify_table(rows, model))
    _warn_fallback(coverage(models.fast(torch.float32)))
    failed = sum(not row.parity.passed for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} rows within the budget", highlight=False)
    if json_path:
        write_json(json_path, [row.to_dict() for row in rows])
    if failed:
        raise typer.Exit(1)


@dataclass(kw_only=True)
class BenchOptions:
    """What `bertfast bench` takes."""

    models: list[str] | None = option(
        None,
        "folders of checkpoints, 'minilm', bert-base or bert-large; none runs the default suite",
        argument=True,
    )
    device: str = option("cpu", "only cpu; a GPU is measured by `make gpu`")
    dtype: str | None = option(None, "float32 or bfloat16; float32 where not given")
    batch: int | None = option(None, "sequences in a batch; 16 where not given", low=1)
    length: int | None = option(None, "tokens a sequence is padded to; 128 where not given", low=1)
    padding: float | None = option(None, "mean share of padding, 0 to below 1; 0.5 where not given")
    threads: int | None = option(None, "torch threads", low=1)
    runs: int | None = option(None, "counted rounds of each case", low=1)
    json: Path | None = option(None, "write results here")
    plot: Path | None = option(None, "write a PNG here (needs matplotlib)")


def _cases(given: BenchOptions, loaded: dict[str, Any]) -> list[Any]:
    """What is to be measured; models that are loaded for it go into `loaded`. Ends the command where the options do not fit."""
    from bertfast.bench import cases as case_list
    from bertfast.bench import run

    if given.device != "cpu":
        raise fail(f"--device {given.device}: only cpu is measured here; on a GPU run `make gpu`")
    shape = {"--dtype": given.dtype, "--batch": given.batch, "--length": given.length, "--padding": given.padding}
    named = [flag for flag, value in shape.items() if value is not None]
    if named and not given.models:
        raise fail(f"{', '.join(named)}: the default suite has its own shapes; name a model, for example minilm")
    dtype, batch, length = given.dtype or "float32", given.batch or 16, given.length or 128
    padding = 0.5 if given.padding is None else given.padding
    if dtype not in case_list.DTYPES:
        raise fail(f"--dtype {dtype}: choose one of {', '.join(case_list.DTYPES)}")
    check_target("--json", given.json)
    check_target("--plot", given.plot)
    if given.plot and importlib.util.find_spec("matplotlib") is None:
        raise fail(f"--plot needs matplotlib: {install('plot')}")
    if given.threads:
        torch.set_num_threads(given.threads)
    todo = [] if given.models else case_list.default_cases()
    for model in given.models or []:
        loaded[model] = run.Models(model)
        if length > loaded[model].positions:
            raise fail(f"--length {length}: {model} has {loaded[model].positions} positions")
        data = loaded[model].random_batch(batch, length, padding)
        name = f"{Path(model).name} {batch}x{length}, {dtype}"
        todo.append(case_list.Case(name, model, dtype, (data,), runs=7))
    return todo


def _bench(given: BenchOptions) -> None:
    from bertfast.bench import render, run
    from bertfast.bench.cases import BenchError

    loaded: dict[str, run.Models] = {}
    results = []
    try:
        for case in _cases(given, loaded):
            if case.model not in loaded:
                loaded[case.model] = run.Models(case.model)
            with console.status(case.name):
                chosen = case if given.runs is None else replace(case, runs=given.runs)
                result = run.run_case(chosen, loaded[case.model])
            verdict = "ok" if result.parity.passed else "FAILED"
            console.print(f"{case.name}: {result.comparison.ratio.p50:.2f}x, parity {verdict}", highlight=False)
            _warn_fallback(result.coverage)
            results.append(result)
    except BenchError as error:
        raise fail(str(error)) from None
    environment = run.environment()
    for table in render.bench_tables(results, environment):
        console.print(table)
    if given.json:
        write_json(given.json, {"environment": environment, "results": [r.to_dict() for r in results]})
    if given.plot:
        render.plot(results, environment, given.plot)
        console.print(f"wrote {given.plot}", highlight=False)
    if not all(r.parity.passed for r in results):
        raise typer.Exit(1)


bench = simple(
    "bench",
    BenchOptions,
    _bench,
    "Time stock against fast, taking turns, after checking parity. Exit status 1 where parity fails.",
)
