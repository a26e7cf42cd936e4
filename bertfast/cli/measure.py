"""doctor, verify and bench: what runs here, whether the numbers are the same, and how much faster."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from bertfast.cli.common import check_target, console, fail, write_json


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
    table = Table(title="owners", caption="CUDA: see the table of GPU ops for where the kernels run")
    for column in ("op", "CPU", "CUDA"):
        table.add_column(column)
    for name, owners in facts["owners"].items():
        table.add_row(name, owners["CPU"], owners["CUDA"])
    console.print(table)
    for arch, ops in facts["gpu_ops"].items():
        table = Table(title=f"GPU ops on {arch}{'' if facts['gpu'] else ' (no GPU is seen here)'}")
        for column in ("op", "runs", "why"):
            table.add_column(column, overflow="fold")
        for op, row in ops.items():
            table.add_row(op, row["runs"], row["why"] + (f". Note: {row['note']}" if "note" in row else ""))
        console.print(table)
        for dtype, text in facts["gpu_models"][arch].items():
            console.print(f"A Hugging Face model in {dtype} on {arch}: {text}", highlight=False, markup=False)
    if not facts["slow"]:
        console.print("nothing is slow here for a reason that bertfast knows")
    for item in facts["slow"]:
        line = f"slow: {item['what']}, because {item['why']}. To mend it: {item['mend']}"
        console.print(line, highlight=False, markup=False)


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


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="folders of checkpoints, 'minilm', bert-base or bert-large; none runs the default suite"),
    ] = None,
    device: Annotated[str, typer.Option(help="only cpu; a GPU is measured by `make gpu`")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; float32 where not given")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="sequences in a batch; 16 where not given")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="tokens a sequence is padded to; 128 where not given")
    ] = None,
    padding: Annotated[
        float | None, typer.Option(help="mean share of padding, 0 to below 1; 0.5 where not given")
    ] = None,
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
        raise fail(f"--device {device}: only cpu is measured here; on a GPU run `make gpu`")
    shape = {"--dtype": dtype, "--batch": batch, "--length": length, "--padding": padding}
    given = [option for option, value in shape.items() if value is not None]
    if given and not models:
        raise fail(f"{', '.join(given)}: the default suite has its own shapes; name a model, for example minilm")
    dtype, batch, length = dtype or "float32", batch or 16, length or 128
    padding = 0.5 if padding is None else padding
    if dtype not in case_list.DTYPES:
        raise fail(f"--dtype {dtype}: choose one of {', '.join(case_list.DTYPES)}")
    check_target("--json", json_path)
    check_target("--plot", plot)
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise fail("--plot needs matplotlib: pip install 'bertfast[plot]'")
    if threads:
        torch.set_num_threads(threads)
    try:
        loaded: dict[str, run.Models] = {}
        todo = [] if models else case_list.default_cases()
        for model in models or []:
            loaded[model] = run.Models(model)
            if length > loaded[model].positions:
                raise fail(f"--length {length}: {model} has {loaded[model].positions} positions")
            data = loaded[model].random_batch(batch, length, padding)
            name = f"{Path(model).name} {batch}x{length}, {dtype}"
            todo.append(case_list.Case(name, model, dtype, (data,), runs=7))
        results = []
        for case in todo:
            if case.model not in loaded:
                loaded[case.model] = run.Models(case.model)
            with console.status(case.name):
                result = run.run_case(case if runs is None else replace(case, runs=runs), loaded[case.model])
            verdict = "ok" if result.parity.passed else "FAILED"
            console.print(f"{case.name}: {result.comparison.ratio.p50:.2f}x, parity {verdict}", highlight=False)
            _warn_fallback(result.coverage)
            results.append(result)
    except case_list.BenchError as error:
        raise fail(str(error)) from None
    environment = run.environment()
    for table in render.bench_tables(results, environment):
        console.print(table)
    if json_path:
        write_json(json_path, {"environment": environment, "results": [r.to_dict() for r in results]})
    if plot:
        render.plot(results, environment, plot)
        console.print(f"wrote {plot}", highlight=False)
    if not all(r.parity.passed for r in results):
        raise typer.Exit(1)
