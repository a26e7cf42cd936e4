"""predict: a fine-tuned model on a file, or on texts given on the line."""

import dataclasses
import json
import typing
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, cast

from bertfast.cli.common import check_target, console, fail, note, notes
from bertfast.cli.flags import simple
from bertfast.cli.loading import DEVICE, chosen_device, mistakes
from bertfast.options import option
from bertfast.tasks.lines import BAD_LINES
from bertfast.tasks.registry import TASKS
from bertfast.tasks.task import Line, Predicted


@dataclass(kw_only=True)
class PredictOptions(Line):
    """What `bertfast predict` takes, but for the options of tasks."""

    model: Path = option(help="folder of a fine-tuned model, such as RUN/model", argument=True)
    input: Path | None = option(None, "file as for `finetune`, without labels", argument=True)
    out: Path | None = option(None, "write predictions here; printed where not given")
    n_best: Path | None = option(None, "questions: write the n best answers with scores here")
    task: str | None = option(None, "what the model is for, where its folder does not say", choices=tuple(TASKS))
    bad_lines: str = option("refuse", "of INPUT", choices=BAD_LINES)
    device: str = DEVICE


def _of_tasks() -> dict[str, tuple[type, Any]]:
    """Options of tasks that may be given here: name to (type, field), the texts of all tasks that have it in its help."""
    options: dict[str, tuple[type, Any]] = {}
    texts: dict[str, list[str]] = {}
    for task in TASKS.values():
        for each in dataclasses.fields(task.options):
            if text := each.metadata.get("predicting"):
                texts.setdefault(each.name, []).append(text)
                about = {**each.metadata, "help": "; ".join(dict.fromkeys(texts[each.name]))}
                options[each.name] = typing.get_type_hints(task.options)[each.name], field(default=None, metadata=about)
    return options


_OF_TASKS = _of_tasks()
_ALL: Any = make_dataclass(
    "AllOptions",
    [(name, kind, each) for name, (kind, each) in _OF_TASKS.items()],
    bases=(PredictOptions,),
    kw_only=True,
)


def _check_input(options: PredictOptions) -> None:
    """Before anything is loaded."""
    check_target("--out", options.out)
    check_target("--n-best", options.n_best)
    asked = options.choice is not None or options.question is not None
    if sum((options.input is not None, options.text is not None, asked)) != 1:
        raise fail("give one of INPUT, --text, --question with --context, or --choice")
    if options.choice is None and (options.question is None) != (options.context is None):
        raise fail("--question and --context belong together")
    if options.context is not None and not asked:
        raise fail("--context goes with --question or --choice; leave it out")


def _refuse_others(fitted: Any, given: dict[str, Any]) -> None:
    """An option that is not of the model's task."""
    for name, value in given.items():
        if name == "n_best":
            tasks = [task.name for task in TASKS.values() if task.has_n_best]
        else:
            tasks = [t.name for t in TASKS.values() if name in (each.name for each in dataclasses.fields(t.options))]
        if value is not None and fitted.task.name not in tasks:
            flag = f"--{name.replace('_', '-')}"
            which = f"task{'s' if len(tasks) > 1 else ''} {' and '.join(map(repr, tasks))}"
            raise fail(f"{flag} is for models of the {which}; this one is for {fitted.task.name!r}: leave it out")


@notes()
def _run(options: PredictOptions) -> None:
    _check_input(options)
    at = chosen_device(options.device)
    with mistakes(at):
        from bertfast.tasks.lines import BadLines
        from bertfast.tasks.predict import Fitted

        bad = BadLines(options.bad_lines == "skip")
        fitted = Fitted.load(options.model, at, options.task)
        own = {name: getattr(options, name) for name in _OF_TASKS}
        _refuse_others(fitted, {**own, "n_best": options.n_best})
        own = {name: value for name, value in own.items() if value is not None}
        fitted = dataclasses.replace(fitted, options=dataclasses.replace(fitted.options, **own))
        if options.input is not None:
            examples = fitted.read(options.input, bad)
        else:
            line = {each.name: getattr(options, each.name) for each in dataclasses.fields(Line)}
            examples = fitted.example(Line(**line))
        for remark in (*fitted.notes, *bad.remarks, *([f"{options.input}: {bad.summary()}"] if bad else [])):
            note(remark)
        _write(fitted.predict(examples), options)


def _write(predicted: Predicted, options: PredictOptions) -> None:
    if predicted.document is None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predicted.rows)
    else:
        text = json.dumps(predicted.document, ensure_ascii=False, indent=1) + "\n"
    if options.n_best is not None:
        whole = json.dumps(predicted.n_best, ensure_ascii=False, indent=1) + "\n"
        _write_text(options.n_best, whole)
    if options.out is not None:
        _write_text(options.out, text)
    else:
        print(predicted.short if options.input is None and predicted.short is not None else text.rstrip("\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    console.print(f"wrote {path}", highlight=False)


predict = simple(
    "predict",
    cast(type[PredictOptions], _ALL),
    _run,
    "Predict with a fine-tuned model: labels, answers, entities or choices with their probabilities, as the model was made for.",
)
