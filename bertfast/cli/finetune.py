"""finetune pair, qa, token: flags made from the options of each kind, a YAML file, and a table of the last scores."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bertfast.cli.common import console, fail
from bertfast.cli.pretrain import EPILOG
from bertfast.train.finetune_config import FinetuneConfig, PairConfig, QAConfig, TokenConfig

app = typer.Typer(no_args_is_help=True, help="Fine-tune a checkpoint on sentences or pairs, questions, or tokens.")

_SHORTER = {"train_file": "--train", "dev_file": "--dev"}
_COMMON: list[tuple[str, Any, Any]] = [
    (
        "out",
        Annotated[Path, typer.Option(help="folder of the run; model/, metrics.json and predictions go there")],
        ...,
    ),
    ("resume", Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")], False),
    ("config", Annotated[Path | None, typer.Option(help="YAML with any of these options; flags win")], None),
    ("set_", Annotated[list[str] | None, typer.Option("--set", help="any option: train.max_grad_norm=0.5")], None),
]


def _flags(cls: type, prefix: str = "") -> dict[str, tuple[str, Any]]:
    """Parameter name -> (dotted path of the option, annotation of its flag), nested sections laid flat."""
    found: dict[str, tuple[str, Any]] = {}
    hints = typing.get_type_hints(cls)
    panel = "Training" if prefix else "Model and data"
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= _flags(typing.cast(type, kind), f"{prefix}{field.name}.")
            continue
        names = [_SHORTER[field.name]] if field.name in _SHORTER else []
        flag = "--" + field.name.replace("_", "-")
        plain = _plain(kind)
        names.append(f"{flag}/--no-{flag[2:]}" if plain is bool else flag)
        flag_type: Any = Annotated[plain | None, typer.Option(*names, help=_help(field), rich_help_panel=panel)]
        found[field.name] = (f"{prefix}{field.name}", flag_type)
    return found


def _help(field: Any) -> str:
    """The option's own text, its choices and its default."""
    made = field.default_factory
    usual = made() if made is not dataclasses.MISSING else field.default
    choices = field.metadata.get("choices")
    parts = [field.metadata.get("help", "")]
    if choices:
        parts.append("|".join(choices))
    if usual is not dataclasses.MISSING and usual is not None:
        parts.append(f"default {','.join(map(str, usual)) if isinstance(usual, list) else usual}")
    return "; ".join(part for part in parts if part)


def _plain(kind: Any) -> Any:
    """What a flag is read as: X of X | None; a list is one text with commas."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    return str if typing.get_origin(kind) is list else kind


def _is_list(cls: type, path: str) -> bool:
    *sections, name = path.split(".")
    for section in sections:
        cls = typing.get_type_hints(cls)[section]
    kind = typing.get_type_hints(cls)[name]
    return any(typing.get_origin(each) is list for each in (kind, *typing.get_args(kind)))


def _command(cls: type[FinetuneConfig], help: str) -> Callable[..., None]:
    flags = _flags(cls)

    def command(**given: Any) -> None:
        values: dict[str, Any] = {}
        for name, (path, _) in flags.items():
            value = given[name]
            is_list = value is not None and _is_list(cls, path)
            values[path] = [part.strip() for part in value.split(",")] if is_list else value
        _run(cls, values, given)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, annotation, default in (*_COMMON, *((name, flag, None) for name, (_, flag) in flags.items()))
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = help
    return command


def _run(cls: type[FinetuneConfig], values: dict[str, Any], given: dict[str, Any]) -> None:
    from bertfast.train.errors import TrainingError
    from bertfast.train.run_folder import recorded
    from bertfast.train.settings import resolve

    try:
        file = given["config"] or (recorded(given["out"]) if given["resume"] else None)
        config = resolve(cls, file, values, given["set_"] or ())
        # Only now: a wrong option is told at once, without seconds of imports.
        from bertfast.data.tokenizer import TokenizerError
        from bertfast.models import ConfigError, WeightsError
        from bertfast.tasks.lines import DataError
        from bertfast.train.distributed import is_main
        from bertfast.train.finetune import best_so_far, finetune
    except TrainingError as error:
        raise _ended(error) from None
    except ImportError as error:
        raise fail(str(error)) from None
    try:
        outcome, scores = finetune(typing.cast(Any, config), given["out"], resume=given["resume"], say=_say, note=_note)
    except TrainingError as error:
        raise _ended(error) from None
    except (DataError, TokenizerError, ConfigError, WeightsError, FileNotFoundError, ImportError) as error:
        raise fail(str(error)) from None
    if not is_main():
        return
    if scores:
        console.print(f"on {config.dev_file} after step {outcome.step}:", markup=False, highlight=False)
        table = Table()
        table.add_column("score")
        table.add_column("value", justify="right")
        for name, value in scores.items():
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        console.print(table)
    if config.keep_best and (best := best_so_far(given["out"])):
        where = f"at step {best['step']}, in {given['out'] / 'best'}"
        _say(f"best: {best['metric']} {best['score']:.4f} {where}")
    if not outcome.finished:
        console.print(f"stopped at step {outcome.step} of {outcome.total_steps} as asked; go on with --resume")
    else:
        console.print(f"the model is in {given['out'] / 'model'}", highlight=False)


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _note(text: str) -> None:
    console.print(f"note: {text}", style="yellow", markup=False, highlight=False)


def _ended(error: Any) -> typer.Exit:
    fail(str(error))
    return typer.Exit(error.exit_status)


app.command("pair", epilog=EPILOG)(
    _command(PairConfig, "Classify (or score) single sentences or sentence pairs: TSV, JSONL or CSV.")
)
app.command("qa", epilog=EPILOG)(
    _command(QAConfig, "Answer questions from a text: SQuAD 1.1, SQuAD 2.0 or JSQuAD JSON.")
)
app.command("token", epilog=EPILOG)(_command(TokenConfig, "Tag tokens, such as named entities: CoNLL or JSONL."))
