"""What fine-tuning asks of a task's data: features, the head's options, right answers in a batch, scores on held-out data."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.data.tokenizer import TokenizerError, load_tokenizer
from bertfast.tasks.features import Feature, Group
from bertfast.tasks.lines import DataError
from bertfast.tasks.loader import Batching

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer
    from bertfast.tasks.labels import StoredHead
    from bertfast.tasks.task import TaskOptions

# The key of config.json under which a fine-tuned model keeps how it was fed; others pass over it.
SETTINGS = "bertfast"
_SHOWN = 12  # classes of a summary


@dataclass
class Evaluation:
    """Scores on held-out data, and what was predicted there: (file name, what JSON or lines of JSON it holds)."""

    metrics: dict[str, float]
    files: dict[str, Any] = field(default_factory=dict)


class Problem(ABC):
    """A task with its data.

    Attributes:
        kind: the task's name, kept with the model.
        head: the class of bertfast.models.
        options: of the task.
        scores: those by which a best model can be chosen; larger is better.
        features: of the training data.
        read: what each file holds, a line each.
        notes: what was left out or cut, and what became of the checkpoint's head.
        head_rows: outputs of the checkpoint's head that are continued, in order; none for a new head, None where it has no head.
        batching: of held-out data; None for what suits the device.
    """

    kind: ClassVar[str]
    head: ClassVar[str]
    options: "TaskOptions"
    scores: tuple[str, ...]
    features: Sequence[Feature | Group]
    read: list[str]
    notes: list[str]
    head_rows: tuple[int, ...] | None = None
    batching: Batching | None = None

    @abstractmethod
    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: Any,
        head: "StoredHead | None" = None,
    ) -> None:
        """Read and prepare both files. `head` is the checkpoint's classifier. DataError for data that cannot be used."""

    def overrides(self) -> dict[str, Any]:
        """Options of the model's configuration."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The task and how the model is to be fed, kept under `SETTINGS` in its configuration. May change with an evaluation."""
        return {"task": self.kind, **self.options.stored()}

    def correct(self, output: Any, batch: Batch) -> Tensor | None:
        """How many of a training batch's targets have the largest logit; None where that says nothing."""
        return None

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluation | None:
        """Scores on the held-out data; None where there is none. The model is in evaluation mode."""


def matching_tokenizer(folder: Path, words: int) -> "Tokenizer":
    """The tokenizer of a folder whose model has `words` words.

    Raises:
        DataError: it gives ids that the model has no embedding for.
        TokenizerError: naming the folder, as `load_tokenizer`.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except TokenizerError as error:
        raise error if str(folder) in str(error) else TokenizerError(f"{folder}: {error}") from None
    if tokenizer.vocab_size > words:
        raise DataError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} pieces, its model {words}: they are not of one checkpoint; "
            "put the tokenizer's files that the model was trained with beside it"
        )
    return tokenizer


def counted(counts: Mapping[str, int]) -> str:
    """ "bad 80, good 91", the first few of many."""
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Write predictions: .jsonl one item a line, .json whole."""
    for name, content in files.items():
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        else:
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
