"""finetune pair, qa, token: flags made from the options of each kind, a YAML file, and a table of the last scores."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bertfast.cli.common import console, note, tell_end, training
from bertfast.cli.pretrain import EPILOG
from bertfast.train.finetune_config import FinetuneConfig, PairConfig, QAConfig, TokenConfig
from bertfast.train.launcher import is_main

app = typer.Typer(no_args_is_help=True, help="Fine-tune a checkpoint on sentences or pairs, questions, or tokens.")

_SHORTER = {"train_file": ["--train"], "dev_file": ["--dev"], "learning_rate": ["--lr"]}
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
        flag = "--" + field.name.replace("_", "-")
        plain = _plain(kind)
        names = [*_SHORTER.get(field.name, []), f"{flag}/--no-{flag[2:]}" if plain is bool else flag]
        flag_type: Any = Annotated[plain | None, typer.Option(*names, help=escape(_help(field)), rich_help_panel=panel)]
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
    out: Path = given["out"]
    with training():
        from bertfast.train.run_folder import recorded
        from bertfast.train.settings import resolve

        file = given["config"] or (recorded(out) if given["resume"] else None)
        config = resolve(cls, file, values, given["set_"] or ())
        # Only now: a wrong option is told at once, without seconds of imports.
        from bertfast.train.finetune import best_so_far, finetune

        outcome, scores = finetune(typing.cast(Any, config), out, resume=given["resume"], say=_say, note=note)
        best = best_so_far(out) if config.keep_best else None
    if not is_main():
        return
    if scores:
        _say(f"on {config.dev_file} after step {outcome.step}:")
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


app.command("pair", epilog=EPILOG)(
    _command(PairConfig, "Classify (or score) single sentences or sentence pairs: TSV, JSONL or CSV.")
)
app.command("qa", epilog=EPILOG)(
    _command(QAConfig, "Answer questions from a text: SQuAD 1.1, SQuAD 2.0 or JSQuAD JSON.")
)
app.command("token", epilog=EPILOG)(_command(TokenConfig, "Tag tokens, such as named entities: CoNLL or JSONL."))
