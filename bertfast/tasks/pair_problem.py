"""Sentences and pairs as a fine-tuning problem: classes, or numbers where regression is asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.tasks import metrics
from bertfast.tasks.features import Feature
from bertfast.tasks.inference import sequence_logits
from bertfast.tasks.labels import Classes, StoredHead, choose_classes, value_head
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import (
    FIELDS,
    PairExample,
    discover_labels,
    label_notes,
    pair_features,
    read_pairs,
    with_targets,
)
from bertfast.tasks.problem import Evaluation, Problem, counted
from bertfast.tasks.special_tokens import cut_markers_note
from bertfast.tasks.unread import empty_texts_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class PairOptions:
    """How files are read and sequences cut.

    fields: names of columns that have to be there, as `pair.field_names` takes them; None for the usual ones, of which the second
        sentence may be absent.
    sentences: 1 or 2 of a line; None as the file has them.
    labels: the classes in their order; None for the checkpoint's, else those of the training file, sorted.
    regression: labels are numbers to be predicted.
    """

    max_length: int = 128
    fields: Sequence[str] | None = None
    sentences: int | None = None
    labels: Sequence[str] | None = None
    regression: bool = False
    skip_bad_lines: bool = False


class PairProblem(Problem):
    """Training and held-out files, read. `head` is the checkpoint's. Raises DataError as `tasks.pair` does."""

    kind = "pair"
    head = "BertForSequenceClassification"

    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: PairOptions,
        head: StoredHead | None = None,
    ) -> None:
        self.tokenizer, self.options, self.notes, self.read = tokenizer, options, [], []
        examples, bad = self._read(train, options.sentences)
        self.sentences = 1 if examples[0].second is None else 2
        self.classes = value_head(head) if options.regression else self._classes(train, examples, bad, head)
        self.labels: list[str] | None = None if options.regression else self.classes.labels
        self.head_rows = None if head is None else self.classes.rows
        self.notes += self.classes.notes
        self.scores = ("pearson", "spearman") if self.labels is None else metrics.class_scores(len(self.labels))
        texts = [text for example in examples for text in (example.first, example.second)]
        if markers := cut_markers_note(texts, tokenizer):
            self.notes.append(f"{train}: {markers}")
        _, _, self.features = self._prepare(train, examples, bad)
        self.dev: list[PairExample] = []
        if dev is not None:
            self.dev, self.dev_targets, self.dev_features = self._prepare(dev, *self._read(dev, self.sentences))
            if self.labels is not None and len(self.labels) == 2:
                self.read.append(f"f1 is that of the second class, {self.labels[1]!r}")

    def _classes(self, train: Path, examples: list[PairExample], bad: BadLines, head: StoredHead | None) -> Classes:
        found = discover_labels(examples)
        chosen = self.options.labels
        if chosen is None:
            self.notes += [f"{train}: {note}" for note in label_notes(examples, bad.header is not None)]
        if len(found) < 2 and chosen is None:
            raise DataError(f"{train}: all labels are {found[0]!r}; a classifier needs two classes at least")
        if chosen is not None and len(chosen) < 2:
            raise DataError(f"labels {','.join(chosen)}: a classifier needs two classes at least")
        return choose_classes(found, found, head, chosen)

    def _read(self, path: Path, sentences: int | None) -> tuple[list[PairExample], BadLines]:
        bad = BadLines(self.options.skip_bad_lines)
        fields = self.options.fields
        examples = read_pairs(path, bad, fields=fields or FIELDS, given=fields is not None, sentences=sentences)
        self.notes += bad.remarks
        return examples, bad

    def _prepare(
        self, path: Path, examples: list[PairExample], bad: BadLines
    ) -> tuple[list[PairExample], list[int | float], list[Feature]]:
        kept, targets = with_targets(examples, self.labels, bad, self.classes.spelling)
        made = pair_features(kept, self.tokenizer, self.options.max_length, targets)
        header = f"; line {bad.header.rpartition(':')[2]} names the columns and was passed over" if bad.header else ""
        self.read.append(f"{path}: {len(kept):,} examples ({self._spread(targets)}){header}")
        if bad:
            self.notes.append(f"{path}: {bad.summary()}")
        places = [example.where for example in kept]
        for text in (unknown_note(made.features, self.tokenizer), empty_texts_note(made.features, places)):
            if text:
                self.notes.append(f"{path}: {text}")
        if made.cut:
            self.notes.append(
                f"{path}: {made.cut} of {len(kept)} examples were cut to {self.options.max_length} pieces"
            )
        return kept, targets, made.features

    def _spread(self, targets: list[int | float]) -> str:
        """How the targets of a file are spread, in a few words."""
        if self.labels is None:
            return f"values from {min(targets):g} to {max(targets):g}"
        counts = Counter(targets)
        return counted({label: counts[index] for index, label in enumerate(self.labels)})

    def overrides(self) -> dict[str, Any]:
        if self.labels is None:
            return {"num_labels": 1, "id2label": {0: self.classes.labels[0]}, "problem_type": "regression"}
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "problem_type": "single_label_classification"}

    def settings(self) -> dict[str, Any]:
        lengths = {"max_length": self.options.max_length, "sentences": self.sentences}
        return {"task": self.kind, **lengths, "fields": list(self.options.fields or FIELDS)}

    def correct(self, output: Any, batch: Batch) -> Tensor | None:
        return None if self.labels is None else (output.logits.argmax(-1) == batch.labels["labels"]).sum()

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        if not self.dev:
            return None
        logits = sequence_logits(model, self.dev_features, self.tokenizer.pad_id, self.batching)
        if self.labels is None:
            scores = metrics.regression(logits[:, 0], np.asarray(self.dev_targets))
        else:
            scores = metrics.classification(logits.argmax(-1), np.asarray(self.dev_targets), self.labels)
        rows = [{**row, "expected": e.label} for row, e in zip(pair_rows(logits, self.labels), self.dev, strict=True)]
        return Evaluation(scores, {"predictions.jsonl": rows})


def pair_rows(
    logits: NDArray[np.float32], labels: Sequence[str] | None, problem_type: str | None = None
) -> list[dict[str, Any]]:
    """What is said of each sequence from its logits [N, C].

    {"label", "probabilities"}; {"value"} where labels is None; {"labels", "probabilities"} where a model gives several labels
    at a time, those with a probability above one half; {"values"} where it predicts several numbers.
    """
    if labels is None:
        return [{"value": float(value)} for value in logits[:, 0]]
    if problem_type == "regression":
        return [{"values": dict(zip(labels, map(float, row), strict=True))} for row in logits]
    numbers = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        rows = [dict(zip(labels, map(float, row), strict=True)) for row in 1.0 / (1.0 + np.exp(-numbers))]
        return [{"labels": [name for name, share in row.items() if share > 0.5], "probabilities": row} for row in rows]
    powers = np.exp(numbers - numbers.max(-1, keepdims=True))
    shares = powers / powers.sum(-1, keepdims=True)
    return [
        {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, map(float, row), strict=True))}
        for row in shares
    ]
