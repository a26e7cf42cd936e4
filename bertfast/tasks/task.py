"""What a fine-tuning task is: one record with its options, reader, problem (features, head, scores) and prediction.

`tasks.registry` lists the records. A module of a task is imported for its help, so it loads neither models nor a tokenizer.
"""

import dataclasses
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bertfast.options import fit, limit_problem, option
from bertfast.tasks.lines import BAD_LINES, BadLines, DataError, check_text, described
from bertfast.tasks.problem import SETTINGS, Problem

if TYPE_CHECKING:
    from bertfast.tasks.predict import Fitted

LABELS = "classes in their order; where not given the checkpoint's, else the training file's, sorted"


@dataclass(kw_only=True)
class TaskOptions:
    """What every task has; a task adds its own. One dataclass for YAML, flags and what a fine-tuned model keeps (`stored`)."""

    max_length: int = option(128, "most pieces of a sequence, special tokens included", low=3, stored="max_length")
    bad_lines: str = option("refuse", "of --train and --dev", choices=BAD_LINES)

    @property
    def skip_bad_lines(self) -> bool:
        return self.bad_lines == "skip"

    def stored(self) -> dict[str, Any]:
        """What a fine-tuned model keeps of these options, by the names that it is kept under."""
        fields = dataclasses.fields(self)
        return {f.metadata["stored"]: getattr(self, f.name) for f in fields if f.metadata.get("stored")}

    @classmethod
    def from_stored(cls, settings: dict[str, Any], folder: Path) -> Self:
        """The options that a model in `folder` was fine-tuned with, and defaults where it keeps none.

        Raises:
            DataError: a value is of another type, or outside its limits.
        """
        kinds = typing.get_type_hints(cls)
        values = {}
        for each in dataclasses.fields(cls):
            name = each.metadata.get("stored")
            if name not in settings:
                continue
            fits, values[each.name] = fit(kinds[each.name], settings[name])
            wrong = limit_problem(each, values[each.name]) if fits else ""
            if not fits or wrong:
                must = f", and must be {wrong}" if wrong else ""
                raise DataError(
                    f"{folder}: {name!r} of {SETTINGS!r} in config.json is {described(settings[name])}{must}; take it out, "
                    "or fix it"
                )
        return cls(**values)


@dataclass(kw_only=True)
class Line:
    """What the command line can give `predict` in place of a file: one example."""

    text: list[str] | None = option(None, "in place of INPUT: a sentence; twice for a pair", repeated=True)
    question: str | None = option(None, "in place of INPUT: a question about --context, or before the choices")
    context: str | None = option(None, "the text that the answer is cut from, or that the choices go on from")
    choice: list[str] | None = option(None, "in place of INPUT: a choice; two or more", repeated=True)

    def given(self) -> list[str]:
        """Names of what is given."""
        return [each.name for each in dataclasses.fields(self) if getattr(self, each.name) is not None]


@dataclass(frozen=True)
class Predicted:
    """What a model says of some examples.

    rows: a JSON object for each, in their order; written as lines.
    document: one JSON value in place of the rows, where files of the task are one.
    n_best: more of each example as one JSON value, where the task has that.
    short: printed in place of either for a single example of the command line.
    """

    rows: list[dict[str, Any]]
    document: Any = None
    n_best: Any = None
    short: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A fine-tuning task.

    Attributes:
        problem: its data, head and scores; the task is named by its `kind`.
        what: one sentence for `bertfast finetune --help`.
        options: its dataclass.
        read: the examples of a file; called with the path, where bad lines go, the options, and whether labels are read.
        line: the example of what the command line gives, with the options.
        needs, takes: names of `Line` that must be given for it, and that may be as well.
        predict: what a fitted model says of examples.
        names_outputs: whether the head's outputs have names (`id2label`), such as those of classes.
        has_n_best: whether `predict` gives `Predicted.n_best`.
        notes: what a user should know of a model by the names of its outputs.
    """

    problem: type[Problem]
    what: str
    options: type[TaskOptions]
    read: Callable[[Path, BadLines, Any, bool], list[Any]]
    line: Callable[[Line, Any], list[Any]]
    predict: Callable[["Fitted", Sequence[Any]], Predicted]
    needs: tuple[str, ...] = ("text",)
    takes: tuple[str, ...] = ()
    names_outputs: bool = True
    has_n_best: bool = False
    notes: Callable[[Sequence[str]], Sequence[str]] = lambda labels: ()

    @property
    def name(self) -> str:
        return self.problem.kind

    @property
    def head(self) -> str:
        """The class of bertfast.models."""
        return self.problem.head

    def example(self, given: Line, options: TaskOptions) -> list[Any]:
        """The example of the command line.

        Raises:
            DataError: something else is given than this task needs, or a text is empty or cannot be read.
        """
        names = given.given()
        if not set(self.needs) <= set(names) or not set(names) <= {*self.needs, *self.takes}:
            required = " and ".join(f"--{name}" for name in self.needs)
            raise DataError(f"this model is for the task {self.name!r}: give {required}")
        for name in names:
            texts = getattr(given, name)
            for text in [texts] if isinstance(texts, str) else texts:
                check_text(f"--{name}", text)
        return self.line(given, options)


def tell(*notes: str) -> None:
    """What a user should know of the answers; the commands print warnings as notes."""
    for note in filter(None, notes):
        warnings.warn(note, stacklevel=3)
