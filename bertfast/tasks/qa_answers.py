"""Answers from start and end logits: n-best over all windows of a question, cut from the context, or none.

The score of an answer is the sum of its start and end logits; that of "no answer" is the same sum at [CLS], the least of all
windows, as in BERT's run_squad.py. A question stays unanswered where this exceeds the best answer by more than a threshold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast.tasks.lines import DataError
from bertfast.tasks.qa import QAExample, Window

# The margin of a question without any candidate: above all margins of logits, and JSON has no infinity.
_NO_CANDIDATE = 1e9


@dataclass(frozen=True)
class Candidate:
    """A text of the context, its characters start..end-1, its score in logits, and its share of the n-best's softmax."""

    text: str
    start: int
    end: int
    score: float
    probability: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """The n best answers of a question, best first, and the score of there being none."""

    id: str
    best: list[Candidate] = field(default_factory=list)
    null_score: float = 0.0

    @property
    def text(self) -> str:
        """The best answer that is not the empty one; "" where the context has no piece at all."""
        return self.best[0].text if self.best else ""

    @property
    def null_margin(self) -> float:
        """How much the empty answer's score is above the best one's: what the threshold is compared with."""
        return self.null_score - self.best[0].score if self.best else _NO_CANDIDATE

    def answer(self, threshold: float | None) -> str:
        """The answer, "" where the margin exceeds the threshold; None never leaves a question unanswered."""
        return "" if threshold is not None and self.null_margin > threshold else self.text


def predict_answers(
    examples: Sequence[QAExample],
    windows: Sequence[Window],
    starts: Sequence[NDArray[np.floating]],
    ends: Sequence[NDArray[np.floating]],
    *,
    n_best: int = 20,
    max_answer: int = 30,
) -> list[Prediction]:
    """One prediction an example, in their order.

    Args:
        starts, ends: logits [L] of each window's tokens.
        n_best: answers kept, and start and end positions tried in each window.
        max_answer: pieces that an answer may have.
    """
    if min(n_best, max_answer) < 1:
        raise DataError(f"n_best {n_best} and max_answer {max_answer} must be at least 1")
    found: list[dict[tuple[int, int], float]] = [{} for _ in examples]
    null = [math.inf] * len(examples)
    for window, start, end in zip(windows, starts, ends, strict=True):
        if not (np.isfinite(start).all() and np.isfinite(end).all()):
            raise DataError(f"question {examples[window.example].id}: logits that are not finite; the model is broken")
        null[window.example] = min(null[window.example], float(start[0]) + float(end[0]))
        for span, score in _spans(window, start, end, n_best, max_answer):
            best = found[window.example]
            best[span] = max(score, best.get(span, -math.inf))
    return [
        Prediction(example.id, _best(example.context, spans, n_best), lowest)
        for example, spans, lowest in zip(examples, found, null, strict=True)
    ]


def _spans(
    window: Window, start: NDArray[np.floating], end: NDArray[np.floating], n_best: int, max_answer: int
) -> list[tuple[tuple[int, int], float]]:
    """The n best ((first character, after the last), score) of one window."""
    context = slice(window.prefix, window.prefix + len(window.offsets))
    from_start, from_end = start[context].astype(np.float64), end[context].astype(np.float64)
    first = np.argsort(-from_start, kind="stable")[:n_best]
    last = np.argsort(-from_end, kind="stable")[:n_best]
    scores = from_start[first][:, None] + from_end[last][None, :]
    pieces = last[None, :] - first[:, None] + 1
    allowed = np.argwhere((pieces >= 1) & (pieces <= max_answer))
    order = np.argsort(-scores[allowed[:, 0], allowed[:, 1]], kind="stable")[:n_best]
    return [((window.offsets[first[i]][0], window.offsets[last[j]][1]), float(scores[i, j])) for i, j in allowed[order]]


def _best(context: str, spans: Mapping[tuple[int, int], float], n_best: int) -> list[Candidate]:
    """The n best different texts; a text that stands at several places keeps the best."""
    kept: dict[str, Candidate] = {}
    for (start, end), score in sorted(spans.items(), key=lambda item: -item[1]):
        text = context[start:end]
        if text.strip() and text not in kept:
            kept[text] = Candidate(text, start, end, score)
        if len(kept) == n_best:
            break
    shares = softmax([candidate.score for candidate in kept.values()])
    return [Candidate(c.text, c.start, c.end, c.score, share) for c, share in zip(kept.values(), shares, strict=True)]


def softmax(scores: Sequence[float]) -> list[float]:
    """Shares that sum to 1; none for no scores."""
    if not scores:
        return []
    powers = np.exp(np.asarray(scores) - max(scores))
    return [float(share) for share in powers / powers.sum()]


def nbest_json(prediction: Prediction) -> dict[str, Any]:
    """What a file of n-best answers holds of one question."""
    return {
        "null_score": prediction.null_score,
        "null_margin": prediction.null_margin,
        "answers": [
            {"text": c.text, "start": c.start, "end": c.end, "score": c.score, "probability": c.probability}
            for c in prediction.best
        ],
    }
