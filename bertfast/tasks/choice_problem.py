"""Multiple choice as a fine-tuning problem: a score for each choice, a softmax over those of a question."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.options import option
from bertfast.tasks import metrics
from bertfast.tasks.choice import ChoiceExample, choice_features, read_choices
from bertfast.tasks.features import Feature, Group
from bertfast.tasks.inference import outputs
from bertfast.tasks.labels import StoredHead
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.loader import Batching
from bertfast.tasks.problem import Evaluation, Problem, counted
from bertfast.tasks.special_tokens import cut_markers_note
from bertfast.tasks.task import Line, Predicted, Task, TaskOptions, tell
from bertfast.tasks.unread import empty_texts_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer
    from bertfast.tasks.predict import Fitted


@dataclass(kw_only=True)
class ChoiceOptions(TaskOptions):
    """How sequences are cut."""

    max_length: int = option(
        128, "most pieces of a question with one choice, special tokens included", low=4, stored="max_length"
    )


class ChoiceProblem(Problem):
    """Training and held-out files, read. `head` is the checkpoint's. Raises DataError as `tasks.choice` does."""

    kind = "choice"
    head = "BertForMultipleChoice"
    scores = ("accuracy",)
    options: ChoiceOptions

    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: ChoiceOptions,
        head: StoredHead | None = None,
    ) -> None:
        self.tokenizer, self.options, self.notes, self.read = tokenizer, options, [], []
        if head is not None and head.other:
            self.head_rows = ()
            self.notes.append(f"the checkpoint's head is not continued: {head.other}; a new one is trained for choices")
        examples, features = self._prepare(train)
        texts = [text for example in examples for text in (example.context, example.question, *example.choices)]
        if markers := cut_markers_note(texts, tokenizer):
            self.notes.append(f"{train}: {markers}")
        self.features = [
            Group(tuple(replace(f, labels={"labels": int(n == example.answer)}) for n, f in enumerate(members)))
            for example, members in zip(examples, _by_example(features, examples), strict=True)
        ]
        self.dev, self.dev_features = self._prepare(dev) if dev is not None else ([], [])

    def _prepare(self, path: Path) -> tuple[list[ChoiceExample], list[Feature]]:
        """The examples of a file, and a feature for each of their choices."""
        bad = BadLines(self.options.skip_bad_lines)
        examples = read_choices(path, bad)
        features, cut = choice_features(examples, self.tokenizer, self.options.max_length)
        sizes = Counter(len(example.choices) for example in examples)
        spread = counted({f"of {size} choices": sizes[size] for size in sorted(sizes)})
        self.read.append(f"{path}: {len(examples):,} questions ({spread})")
        places = [example.where for example in examples for _ in example.choices]
        notes = [*bad.remarks]
        notes += [f"{path}: {bad.summary()}"] if bad else []
        for text in (unknown_note(features, self.tokenizer), empty_texts_note(features, places)):
            notes += [f"{path}: {text}"] if text else []
        if cut:
            notes.append(f"{path}: {cut} of {len(features)} choices were cut to {self.options.max_length} pieces")
        self.notes += notes
        return examples, features

    def overrides(self) -> dict[str, Any]:
        return {"num_labels": 2}  # what transformers' configuration has where nothing is named

    def correct(self, output: Any, batch: Batch) -> Tensor | None:
        from bertfast.models.losses import of_group  # a task's module loads no models

        best = of_group(output.logits, batch.labels["groups"]).amax(-1)
        return ((batch.labels["labels"] == 1) & (output.logits == best)).sum()

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        if not self.dev:
            return None
        shares = choose(model, self.tokenizer.pad_id, self.dev, self.dev_features, self.batching)
        chosen = [int(row.argmax()) for row in shares]
        right = [int(example.answer or 0) for example in self.dev]
        rows = [{**_row(e, row), "expected": e.answer} for e, row in zip(self.dev, shares, strict=True)]
        return Evaluation({"accuracy": metrics.accuracy(chosen, right)}, {"predictions.jsonl": rows})


def _by_example(values: Any, examples: Sequence[ChoiceExample]) -> Iterator[Any]:
    """The values of all choices, a sequence or an array, parted by example."""
    begin = 0
    for example in examples:
        yield values[begin : begin + len(example.choices)]
        begin += len(example.choices)


def choose(
    model: nn.Module,
    pad_id: int,
    examples: Sequence[ChoiceExample],
    features: Sequence[Feature],
    batching: Batching | None = None,
) -> list[NDArray[np.float64]]:
    """The probability of each choice, [C] of each example, by running the model on their features."""
    scores = np.empty(len(features), np.float64)
    for indices, values in outputs(model, features, pad_id, lambda found: found.logits, batching):
        scores[indices] = values
    shares = []
    for row in _by_example(scores, examples):
        powers = np.exp(row - np.max(row))
        shares.append(powers / powers.sum())
    return shares


def _row(example: ChoiceExample, shares: NDArray[np.float64]) -> dict[str, Any]:
    best = int(shares.argmax())
    return {"answer": best, "choice": example.choices[best], "probabilities": shares.tolist()}


def from_line(given: Line, options: ChoiceOptions) -> list[ChoiceExample]:
    """The question of the command line. DataError: fewer than two choices, or nothing that they are of."""
    choices = tuple(given.choice or ())
    if len(choices) < 2 or not (given.context or given.question):
        raise DataError(
            f"{len(choices)} choices were given with --choice; give two or more, and --question or --context or both"
        )
    return [ChoiceExample(given.context or "", given.question or "", choices, None, "--choice")]


def predict(fitted: "Fitted", examples: Sequence[ChoiceExample]) -> Predicted:
    """{"answer", "choice", "probabilities"} of each, after "context" and "question" where it has them."""
    features, _ = choice_features(examples, fitted.tokenizer, fitted.options.max_length)
    places = [example.where for example in examples for _ in example.choices]
    tell(unknown_note(features, fitted.tokenizer), empty_texts_note(features, places))
    shares = choose(fitted.model, fitted.tokenizer.pad_id, examples, features)
    rows = []
    for example, row in zip(examples, shares, strict=True):
        texts = {"context": example.context, "question": example.question}
        rows.append({**{name: text for name, text in texts.items() if text}, **_row(example, row)})
    return Predicted(rows)


TASK = Task(
    problem=ChoiceProblem,
    what="Choose among answers or endings, as in SWAG: TSV, CSV or JSONL.",
    options=ChoiceOptions,
    read=lambda path, bad, options, labelled: read_choices(path, bad, labelled),
    line=from_line,
    predict=predict,
    needs=("choice",),
    takes=("question", "context"),
    names_outputs=False,
)
