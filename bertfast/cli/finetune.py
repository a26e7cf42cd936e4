"""finetune TASK, a command for each task of the registry: its options as flags, a YAML file, and a table of the last scores."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bertfast.cli.common import console, note, tell_end, training
from bertfast.cli.flags import command, flags_of
from bertfast.cli.pretrain import EPILOG
from bertfast.tasks.registry import TASKS
from bertfast.train.finetune_config import FinetuneConfig, check_task, config_class
from bertfast.train.launcher import is_main

app = typer.Typer(no_args_is_help=True, help="Fine-tune a checkpoint: texts or pairs, questions, tokens, choices.")

_COMMON: dict[str, tuple[Any, Any]] = {
    "out": (
        Annotated[Path, typer.Option(help="folder of the run; model/, metrics.json and predictions go there")],
        ...,
    ),
    "resume": (Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")], False),
    "config": (Annotated[Path | None, typer.Option(help="YAML with any of these options; flags win")], None),
    "sets": (Annotated[list[str] | None, typer.Option("--set", help="any option: train.max_grad_norm=0.5")], None),
}


def _run(
    cls: type[FinetuneConfig],
    values: dict[str, Any],
    out: Path,
    resume: bool,
    config: Path | None,
    sets: list[str] | None,
) -> None:
    with training():
        from bertfast.train.run_folder import recorded
        from bertfast.train.settings import resolve

        file = config or (recorded(out) if resume else None)
        if file is not None:
            check_task(file, cls.task_record.name)
        chosen = resolve(cls, file, values, sets or ())
        # Only now: a wrong option is told at once, without seconds of imports.
        from bertfast.train.finetune import best_so_far, finetune

        outcome, scores = finetune(chosen, out, resume=resume, say=_say, note=note)
        best = best_so_far(out) if chosen.keep_best else None
    if not is_main():
        return
    if scores:
        _say(f"on {chosen.dev_file} after step {outcome.step}:")
        table = Table()
        table.add_column("score")
        table.add_column("value", justify="right")
        for name, value in scores.items():
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        console.print(table)
    if best:
        _say(f"best: {best['metric']} {best['score']:.4f} at step {best['step']}, in {out / 'best'}")
    tell_end(outcome, out)


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


for _task in TASKS.values():
    _class = config_class(_task.name)
    _flags = flags_of(_class, "Model and data")
    app.command(epilog=EPILOG)(command(_task.name, _flags, partial(_run, _class), _task.what, extra=_COMMON))
