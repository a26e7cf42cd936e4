"""Sentences and pairs as a fine-tuning problem: classes, or numbers where regression is asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bertfast.data.batches import Batch
from bertfast.options import option
from bertfast.tasks import metrics
from bertfast.tasks.features import Feature
from bertfast.tasks.inference import sequence_logits
from bertfast.tasks.labels import Classes, StoredHead, choose_classes, value_head
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.pair import (
    FIELDS,
    PairExample,
    discover_labels,
    field_names,
    label_notes,
    pair_features,
    read_pairs,
    with_targets,
)
from bertfast.tasks.problem import Evaluation, Problem, counted
from bertfast.tasks.special_tokens import cut_markers_note
from bertfast.tasks.task import LABELS, Line, Predicted, Task, TaskOptions, tell
from bertfast.tasks.unread import empty_texts_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer
    from bertfast.tasks.predict import Fitted


@dataclass(kw_only=True)
class ClassOptions(TaskOptions):
    """Of tasks that give a sequence a class or a number."""

    labels: list[str] | None = option(None, LABELS)
    regression: bool = option(False, "labels are numbers to be predicted")
    fields: list[str] | None = option(None, stored="fields")
    sentences: ClassVar[int | None]
    usual_fields: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        field_names(self.usual_fields if self.fields is None else self.fields, self.sentences, labelled=False)

    def stored(self) -> dict[str, Any]:
        return super().stored() | {"sentences": self.sentences, "fields": list(self.fields or self.usual_fields)}

    @classmethod
    def from_stored(cls, settings: dict[str, Any], folder: Path) -> Self:
        kept = super().from_stored(settings, folder)
        return replace(kept, fields=None) if tuple(kept.fields or ()) == cls.usual_fields else kept


@dataclass(kw_only=True)
class PairOptions(ClassOptions):
    """Of sentences and pairs."""

    fields: list[str] | None = option(
        None,
        "columns, each of which has to be there: first sentence, second, label; or sentence, label. Where not given "
        "sentence1, sentence2 and label, the second only where a file has it",
        stored="fields",
        predicting="of JSONL and CSV: names of the texts; the model's where not given",
    )
    sentences: int | None = option(  # type: ignore[misc]
        None, "1 or 2 of a line; as the file has them where not given", low=1, high=2, stored="sentences"
    )
    usual_fields: ClassVar[tuple[str, ...]] = FIELDS


class PairProblem(Problem):
    """Training and held-out files, read. `head` is the checkpoint's. Raises DataError as `tasks.pair` does."""

    kind = "pair"
    options: ClassOptions
    head = "BertForSequenceClassification"

    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: ClassOptions,
        head: StoredHead | None = None,
    ) -> None:
        self.tokenizer, self.options, self.notes, self.read = tokenizer, options, [], []
        examples, bad = self._read(train)
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

    def _read(self, path: Path, sentences: int | None = None) -> tuple[list[PairExample], BadLines]:
        """sentences: of a line, where another file has told."""
        bad = BadLines(self.options.skip_bad_lines)
        examples = read(path, bad, self.options, sentences=sentences)
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
        return super().settings() | {"sentences": self.sentences}

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


def read(
    path: Path, bad: BadLines, options: ClassOptions, labelled: bool = True, sentences: int | None = None
) -> list[PairExample]:
    """The examples of a file; as `read_pairs`. sentences: of a line, in place of the options'."""
    return read_pairs(
        path,
        bad,
        fields=options.fields or options.usual_fields,
        given=options.fields is not None,
        sentences=sentences or options.sentences,
        labelled=labelled,
    )


def from_line(given: Line, options: ClassOptions) -> list[PairExample]:
    """The example of the command line. DataError: other than the texts that the model reads."""
    texts = given.text or []
    sentences = options.sentences or len(texts)
    if len(texts) != sentences or sentences not in (1, 2):
        raise DataError(f"{len(texts)} texts were given with --text; this model reads {min(sentences, 2)}")
    return [PairExample(texts[0], texts[1] if sentences == 2 else None, None, "--text")]


def predict(fitted: "Fitted", examples: Sequence[PairExample]) -> Predicted:
    """{"sentence1", "sentence2" if there is one} of each, and what `pair_rows` says of it."""
    made: list[Feature] = pair_features(examples, fitted.tokenizer, fitted.options.max_length).features
    places = [example.where for example in examples]
    tell(unknown_note(made, fitted.tokenizer), empty_texts_note(made, places))
    logits = sequence_logits(fitted.model, made, fitted.tokenizer.pad_id)
    rows = []
    for example, row in zip(examples, pair_rows(logits, fitted.labels, fitted.problem_type), strict=True):
        second = {} if example.second is None else {"sentence2": example.second}
        rows.append({"sentence1": example.first, **second, **row})
    return Predicted(rows)


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


TASK = Task(
    problem=PairProblem,
    what="Classify (or score) single sentences or sentence pairs: TSV, JSONL or CSV.",
    options=PairOptions,
    read=read,
    line=from_line,
    predict=predict,
)
