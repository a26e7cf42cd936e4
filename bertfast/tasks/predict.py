"""Predictions of a fine-tuned model's folder on a file or on texts: its configuration says which task it is for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast import models
from bertfast.tasks.device import choose
from bertfast.tasks.lines import BadLines, DataError, described
from bertfast.tasks.problem import SETTINGS, matching_tokenizer
from bertfast.tasks.registry import TASKS
from bertfast.tasks.stored import label_names_notes
from bertfast.tasks.task import Line, Predicted, Task, TaskOptions

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fitted:
    """A fine-tuned model with its tokenizer, its task, how it was fed (`options`) and its labels.

    labels: None where the model predicts a number.
    notes: what a user should know of what the model can say.
    """

    model: Any
    tokenizer: "Tokenizer"
    task: Task
    options: TaskOptions
    labels: list[str] | None
    notes: tuple[str, ...] = ()

    @property
    def problem_type(self) -> str | None:
        return self.model.config.problem_type

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "auto", task: str | None = None) -> "Fitted":
        """The model in `folder`, ready for inference. A model that bertfast did not fine-tune has default lengths.

        device: as `tasks.device.choose` takes it; what is predicted with the model is computed there.
        task: in place of the one that the folder says, or that its head is taken for.

        Raises:
            DeviceError: there is no such device; nothing was read then.
            DataError: its architecture has no head of a task, or of this one; two of its outputs have one name; its settings are
                none.
            FileNotFoundError, ValueError: as `from_pretrained` and `matching_tokenizer`.
        """
        at = choose(device)
        config = models.BertConfig.from_pretrained(folder)
        settings = _settings(folder, config)
        chosen, notes = _task_of(folder, config.extra.get("architectures") or [], settings.get("task"), task)
        options = chosen.options.from_stored(settings, folder)
        options = replace(options, max_length=min(options.max_length, config.max_position_embeddings))
        tokenizer = matching_tokenizer(folder, config.vocab_size)
        model = getattr(models, chosen.head).from_pretrained(folder).to(at)
        labels = list((config.id2label or {}).values())
        if chosen.names_outputs:
            _check_names(folder, labels)
            notes += (*label_names_notes(folder), *chosen.notes(labels))
        is_number = len(labels) == 1 and config.problem_type in (None, "regression")
        has_labels = chosen.head != "BertForSequenceClassification" or not is_number
        return cls(model, tokenizer, chosen, options, labels if has_labels else None, notes)

    def read(self, path: Path, bad: BadLines) -> list[Any]:
        """The examples of a file; labels are not needed."""
        return self.task.read(path, bad, self.options, False)

    def example(self, given: Line) -> list[Any]:
        """The example of the command line. DataError: this model is for something else."""
        return self.task.example(given, self.options)

    def predict(self, examples: Sequence[Any]) -> Predicted:
        """What the model says of examples, as `read` and `example` give them."""
        return self.task.predict(self, examples)


def _task_of(
    folder: Path, architectures: Sequence[str], stored: str | None, given: str | None
) -> tuple[Task, tuple[str, ...]]:
    """The task of a checkpoint, and what a user should know of how it was chosen: as given, as stored, or by its head."""
    fitting = [task for task in TASKS.values() if task.head in architectures]
    if not fitting:
        heads = dict.fromkeys(task.head for task in TASKS.values())
        raise DataError(
            f"{folder}: its architecture is {', '.join(architectures) or 'not named'}, which predicts nothing; "
            f"fine-tune it first (`bertfast finetune`), or name a {', '.join(heads)}"
        )
    names = ", ".join(task.name for task in fitting)
    name = stored if given is None else given
    if name is None:
        first = fitting[0]
        more = f" ({names} have this head: --task chooses)" if len(fitting) > 1 else ""
        note = (
            f"config.json does not say which task the model is for; its {first.head} is taken for {first.name!r}{more}"
        )
        return first, (f"{folder}: {note}",)
    if name in TASKS and TASKS[name] in fitting:
        return TASKS[name], ()
    where = "--task" if given is not None else f"'task' of {SETTINGS!r} in config.json"
    known = f"the tasks are {', '.join(TASKS)}" if name not in TASKS else f"its head is a {fitting[0].head}"
    raise DataError(f"{folder}: {where} is {name!r}, and {known}; give --task {' or --task '.join(names.split(', '))}")


def _check_names(folder: Path, labels: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(labels).items() if count > 1]:
        raise DataError(
            f"{folder}: id2label in config.json names {len(labels)} outputs and {twice[0]!r} more than once; name each its own"
        )


def _settings(folder: Path, config: models.BertConfig) -> dict[str, Any]:
    """How the model was fed, from its configuration. DataError where that holds something else."""
    kept = config.extra.get(SETTINGS) or {}
    if not isinstance(kept, dict):
        raise DataError(
            f"{folder}: {SETTINGS!r} in config.json is {described(kept)}, not an object of settings; take it out"
        )
    if not isinstance(kept.get("task"), (str, type(None))):
        raise DataError(
            f"{folder}: 'task' of {SETTINGS!r} in config.json is {described(kept['task'])}; take it out, or fix it"
        )
    return kept
