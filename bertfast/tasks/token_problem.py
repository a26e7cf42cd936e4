"""Token classification as a fine-tuning problem, scored by whole entities."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from bertfast.data.batches import IGNORED, Batch
from bertfast.options import option
from bertfast.tasks.entities import entities, entity_scores, split_tag
from bertfast.tasks.inference import token_arrays
from bertfast.tasks.labels import StoredHead, choose_classes, listed
from bertfast.tasks.lines import BadLines, DataError
from bertfast.tasks.loader import Batching
from bertfast.tasks.problem import Evaluation, Problem, counted
from bertfast.tasks.special_tokens import cut_markers_note
from bertfast.tasks.task import LABELS, Line, Predicted, Task, TaskOptions, tell
from bertfast.tasks.token import TokenExample, discover_tags, read_tokens
from bertfast.tasks.token_features import (
    TokenWindow,
    marked_entities,
    predict_tags,
    split_words,
    token_features,
    unread_words,
    unsaid_note,
)
from bertfast.tasks.unread import empty_words_note, unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer
    from bertfast.tasks.predict import Fitted


@dataclass(kw_only=True)
class TokenOptions(TaskOptions):
    """How sentences are cut into windows, and the tags."""

    max_length: int = option(256, "most pieces of a window, special tokens included", low=3, stored="max_length")
    stride: int = option(128, "pieces between the starts of two windows of a long sentence", low=1, stored="stride")
    labels: list[str] | None = option(None, LABELS.replace("classes", "tags"))


class TokenProblem(Problem):
    """Training and held-out files, read. `head` is the checkpoint's. Raises DataError as `tasks.token` does."""

    kind = "token"
    head = "BertForTokenClassification"
    options: TokenOptions
    scores = ("f1", "precision", "recall", "accuracy")

    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: TokenOptions,
        head: StoredHead | None = None,
    ) -> None:
        self.tokenizer, self.options, self.notes, self.read = tokenizer, options, [], []
        examples = self._read(train)
        found = {tag: None for example in examples for tag in example.tags or ()}
        self.classes = choose_classes(list(found), discover_tags(examples), head, options.labels)
        self.labels, self.head_rows = self.classes.labels, None if head is None else self.classes.rows
        self.notes += self.classes.notes
        if len(self.labels) < 2:
            raise DataError(f"{train}: the only tag is {self.labels[0]}; there is nothing to learn")
        examples = self._known(train, self._spelled(examples))
        if markers := cut_markers_note((example.text for example in examples), tokenizer):
            self.notes.append(f"{train}: {markers}")
        windows = self._windows(examples, self.labels)
        self.features = [window.feature for window in windows]
        self._note_unread(train, examples, windows)
        self._say_read(train, examples, len(self.features))
        self.dev = self._spelled(self._read(dev)) if dev is not None else []
        self.dev_windows = self._windows(self.dev, None)
        if dev is not None:
            self._say_read(dev, self.dev, len(self.dev_windows))
            self._note_unread(dev, self.dev, self.dev_windows)
            self._note_unknown_tags(dev)

    def _spelled(self, examples: list[TokenExample]) -> list[TokenExample]:
        """Examples with the tags as the model names them."""
        other = self.classes.spelling
        if not other:
            return examples
        return [replace(e, tags=tuple(other.get(tag, tag) for tag in e.tags or ())) for e in examples]

    def _known(self, path: Path, examples: list[TokenExample]) -> list[TokenExample]:
        """Those whose tags can all be learnt; the others are bad, each as a whole sentence."""
        bad = BadLines(self.options.skip_bad_lines)
        known = []
        for example in examples:
            strange = next((tag for tag in example.tags or () if tag not in self.labels), None)
            if strange is None:
                known.append(example)
            else:
                bad.report(example.where, f"a tag that is none of {listed(self.labels)}", strange)
        if bad:
            self.notes.append(f"{path}: {bad.summary()}")
        if not known:
            raise DataError(f"{path}: no sentence has only the tags {listed(self.labels)}; {bad.summary()}")
        return known

    def _read(self, path: Path) -> list[TokenExample]:
        bad = BadLines(self.options.skip_bad_lines)
        examples = split_words(read_tokens(path, bad), self.tokenizer)
        self.notes += bad.remarks
        self.notes += [f"{path}: {text}" for text in (bad.summary(), unsaid_note(examples)) if text]
        return examples

    def _say_read(self, path: Path, examples: list[TokenExample], windows: int) -> None:
        kinds = Counter(kind for example in examples for kind, _, _ in entities(example.tags or ()))
        words = sum(len(example.words) for example in examples)
        found = counted(dict(sorted(kinds.items()))) or "none"
        self.read.append(
            f"{path}: {len(examples):,} sentences, {words:,} words, {windows:,} windows; entities: {found}"
        )

    def _note_unread(self, path: Path, examples: list[TokenExample], windows: list[TokenWindow]) -> None:
        notes = (
            unknown_note([w.feature for w in windows], self.tokenizer),
            empty_words_note(unread_words(examples, windows)),
        )
        self.notes += [f"{path}: {text}" for text in notes if text]

    def _note_unknown_tags(self, dev: Path) -> None:
        """Tags that training never saw stay in the score, as wrong."""
        unknown = Counter(tag for example in self.dev for tag in example.tags or () if tag not in self.labels)
        if unknown:
            self.notes.append(
                f"{dev}: {unknown.total()} words have tags that the training file has not, and can only be wrong: "
                f"{counted(dict(sorted(unknown.items())))}"
            )

    def _windows(self, examples: list[TokenExample], tags: Sequence[str] | None) -> list[TokenWindow]:
        o = self.options
        return token_features(examples, self.tokenizer, max_length=o.max_length, stride=o.stride, tags=tags)

    def overrides(self) -> dict[str, Any]:
        return {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels))}

    def correct(self, output: Any, batch: Batch) -> Tensor | None:
        labels = batch.labels["labels"]
        return ((output.logits.argmax(-1) == labels) & (labels != IGNORED)).sum()

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        if not self.dev:
            return None
        tags = tag(model, self.tokenizer.pad_id, self.dev, self.dev_windows, self.labels, self.batching)
        missed = [mark.label for example in self.dev for mark in example.unsaid]
        scores = entity_scores(tags, [example.tags or () for example in self.dev], missed)
        rows = [
            {"tokens": example.words, "tags": found, "expected": example.tags}
            for example, found in zip(self.dev, tags, strict=True)
        ]
        return Evaluation(scores, {"predictions.jsonl": rows})


def tag(
    model: nn.Module,
    pad_id: int,
    examples: Sequence[TokenExample],
    windows: Sequence[TokenWindow],
    tags: Sequence[str],
    batching: Batching | None = None,
) -> list[list[str]]:
    """The tag of every word of every example, by running the model on their windows."""
    logits = token_arrays(model, [window.feature for window in windows], pad_id, lambda found: found.logits, batching)
    return predict_tags(examples, windows, [row.argmax(-1) for row in logits], tags)


def from_line(given: Line, options: TokenOptions) -> list[TokenExample]:
    """The text of the command line. DataError: more than one."""
    texts = given.text or []
    if len(texts) != 1:
        raise DataError(f"{len(texts)} texts were given with --text; this model reads 1")
    return [TokenExample(texts[0], (), (), None, "--text", is_text=True)]


def scheme_note(labels: Sequence[str]) -> tuple[str, ...]:
    """That classes which are no tags of entities are predicted as they are."""
    try:
        for label in labels:
            split_tag(label)
    except ValueError as error:
        return (f"{error}: the model's classes are predicted as tags of words, without entities",)
    return ()


def predict(fitted: "Fitted", examples: Sequence[TokenExample]) -> Predicted:
    """{"text", "entities": [{"start", "end", "label", "text"}]} of each, and "tokens" and "tags" where the file gave words.

    Where the model's classes are no tags of entities: "text", "tokens", "tags".
    """
    options, labels = cast(TokenOptions, fitted.options), fitted.labels or []
    given = split_words(examples, fitted.tokenizer)
    windows = token_features(given, fitted.tokenizer, max_length=options.max_length, stride=options.stride)
    tell(
        unknown_note([window.feature for window in windows], fitted.tokenizer),
        empty_words_note(unread_words(given, windows)),
    )
    rows = []
    has_entities = not scheme_note(labels)
    tags = tag(fitted.model, fitted.tokenizer.pad_id, given, windows, labels)
    for example, found in zip(given, tags, strict=True):
        words = {"tokens": example.words, "tags": found} if not (has_entities and example.is_text) else {}
        entities = {"entities": marked_entities(example, found)} if has_entities else {}
        rows.append({"text": example.text, **words, **entities})
    return Predicted(rows)


TASK = Task(
    problem=TokenProblem,
    what="Tag tokens, such as named entities: CoNLL or JSONL.",
    options=TokenOptions,
    read=lambda path, bad, options, labelled: read_tokens(path, bad, labelled),
    line=from_line,
    predict=predict,
    notes=scheme_note,
)
