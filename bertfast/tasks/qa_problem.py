"""Extractive question answering as a fine-tuning problem, with the threshold of "no answer" found on the held-out questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from bertfast.options import option
from bertfast.tasks.inference import qa_logits
from bertfast.tasks.labels import StoredHead
from bertfast.tasks.lines import BadLines
from bertfast.tasks.loader import Batching
from bertfast.tasks.problem import Evaluation, Problem
from bertfast.tasks.qa import QAExample, QAFeatures, Window, qa_features, read_squad
from bertfast.tasks.qa_answers import Prediction, nbest_json, predict_answers
from bertfast.tasks.special_tokens import cut_markers_note
from bertfast.tasks.squad_metrics import best_threshold, evaluate_answers
from bertfast.tasks.task import Line, Predicted, Task, TaskOptions, tell
from bertfast.tasks.unread import unknown_note

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer
    from bertfast.tasks.predict import Fitted


@dataclass(kw_only=True)
class QAOptions(TaskOptions):
    """How contexts are cut into windows and answers chosen.

    `threshold` is how much "no answer" must exceed the best answer by; None for 0 while training and the best on the held-out
    questions in the model that is saved. Without impossible questions in either file every question is answered.
    """

    max_length: int = option(
        384, "most pieces of a window, question and special tokens included", low=3, stored="max_length"
    )
    stride: int = option(128, "pieces between the starts of two windows", low=1, stored="stride")
    max_question: int = option(64, "most pieces of a question", low=1, stored="max_question")
    max_answer: int = option(30, "most pieces of an answer", low=1, stored="max_answer")
    n_best: int = option(20, "answers kept for a question", low=1)
    threshold: float | None = option(
        None,
        "score above which no answer is given; found on the held-out data where not given",
        stored="no_answer_threshold",
        predicting="questions: score above which no answer is given; the model's where not given",
    )
    language: str | None = option(None, "of the score; the tokenizer's where not given", choices=("en", "ja"))


class QAProblem(Problem):
    """Training and held-out files, read. Raises DataError as `tasks.qa` does."""

    kind = "qa"
    head = "BertForQuestionAnswering"
    options: QAOptions
    scores = ("f1", "exact", "best_f1", "best_exact", "HasAns_f1", "HasAns_exact")

    def __init__(
        self,
        tokenizer: "Tokenizer",
        train: Path,
        dev: Path | None,
        options: QAOptions,
        head: StoredHead | None = None,
    ) -> None:
        self.tokenizer, self.options, self.notes, self.read = tokenizer, options, [], []
        self.language = options.language or tokenizer.language
        examples = self._read(train)
        texts = dict.fromkeys(text for example in examples for text in (example.question, example.context))
        if markers := cut_markers_note(
            texts, tokenizer, specials=False
        ):  # JSQuAD's contexts all have a [SEP] that is text
            self.notes.append(f"{train}: {markers}")
        made = self._windows(train, examples, training=True)
        self.features = made.features
        self.dev = self._read(dev) if dev is not None else []
        self.dev_windows = self._windows(dev, self.dev).windows if dev is not None else []
        self.may_abstain = any(e.impossible for e in examples) or any(not e.answers for e in self.dev)
        self.best: float | None = None

    def _read(self, path: Path) -> list[QAExample]:
        bad = BadLines(self.options.skip_bad_lines)
        examples = read_squad(path, bad)
        if bad:
            self.notes.append(f"{path}: {bad.summary()}")
        return examples

    def _windows(self, path: Path, examples: list[QAExample], training: bool = False) -> QAFeatures:
        o = self.options
        made = qa_features(
            examples,
            self.tokenizer,
            max_length=o.max_length,
            stride=o.stride,
            max_question=o.max_question,
            training=training,
        )
        self.read.append(
            f"{path}: {len(examples):,} questions ({sum(not e.answers for e in examples):,} without an answer), "
            f"{len(made.windows):,} windows"
        )
        for count, what in (
            (made.questions_cut, f"questions were cut to {o.max_question} pieces"),
            (made.unanswerable, "questions have no answer that training could learn, and were left out"),
        ):
            if count:
                self.notes.append(f"{path}: {count} of {len(examples)} {what}")
        if unknown := unknown_note(made.features, self.tokenizer):
            self.notes.append(f"{path}: {unknown}")
        return made

    @property
    def threshold(self) -> float | None:
        """That exact and f1 are of, 0 where not given, as in SQuAD's own script; None where every question is answered."""
        return (self.options.threshold or 0.0) if self.may_abstain else None

    @property
    def chosen(self) -> float | None:
        """That the model is saved with: the best on the held-out data where none is given."""
        found = self.may_abstain and self.options.threshold is None and self.best is not None
        return self.best if found else self.threshold

    def overrides(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"no_answer_threshold": self.chosen}

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        if not self.dev:
            return None
        found = answer(model, self.tokenizer.pad_id, self.dev, self.dev_windows, self.options, self.batching)
        golds = {example.id: example.answers for example in self.dev}
        texts = {prediction.id: prediction.answer(self.threshold) for prediction in found}
        scores = evaluate_answers(golds, texts, self.language)
        if self.may_abstain:
            margins = {prediction.id: prediction.null_margin for prediction in found}
            best = best_threshold(golds, {p.id: p.text for p in found}, margins, self.language)
            self.best = best["best_f1_threshold"]
            scores |= best
            # The answers that `predict` will give.
            texts = {prediction.id: prediction.answer(self.chosen) for prediction in found}
        nbest = {prediction.id: nbest_json(prediction) for prediction in found}
        return Evaluation(scores, {"predictions.json": texts, "nbest.json": nbest})


def answer(
    model: nn.Module,
    pad_id: int,
    examples: Sequence[QAExample],
    windows: Sequence[Window],
    options: QAOptions,
    batching: Batching | None = None,
) -> list[Prediction]:
    """The n best answers of each question, by running the model on their windows."""
    starts, ends = qa_logits(model, [window.feature for window in windows], pad_id, batching)
    return predict_answers(examples, windows, starts, ends, n_best=options.n_best, max_answer=options.max_answer)


def from_line(given: Line, options: QAOptions) -> list[QAExample]:
    """The question of the command line."""
    return [QAExample("1", given.question or "", given.context or "")]


def predict(fitted: "Fitted", examples: Sequence[QAExample]) -> Predicted:
    """{"id", "answer"} of each question; the document is SQuAD's: answers by id, "" for none."""
    options = cast(QAOptions, fitted.options)
    made = qa_features(
        examples,
        fitted.tokenizer,
        max_length=options.max_length,
        stride=options.stride,
        max_question=options.max_question,
    )
    tell(unknown_note(made.features, fitted.tokenizer))
    found = answer(fitted.model, fitted.tokenizer.pad_id, examples, made.windows, options)
    texts = {prediction.id: prediction.answer(options.threshold) for prediction in found}
    rows = [{"id": name, "answer": text} for name, text in texts.items()]
    n_best = {prediction.id: nbest_json(prediction) for prediction in found}
    return Predicted(rows, texts, n_best, next(iter(texts.values())) or "(no answer)")


TASK = Task(
    problem=QAProblem,
    what="Answer questions from a text: SQuAD 1.1, SQuAD 2.0 or JSQuAD JSON.",
    options=QAOptions,
    read=lambda path, bad, options, labelled: read_squad(path, bad, labelled),
    line=from_line,
    predict=predict,
    needs=("question", "context"),
    names_outputs=False,
    has_n_best=True,
)
