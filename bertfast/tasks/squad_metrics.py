"""Exact match and F1 of extractive answers: SQuAD 1.1's and 2.0's for English, JGLUE's for Japanese.

English follows the official evaluation scripts (evaluate-v1.1.py, evaluate-v2.0.py): lower case, punctuation, the articles
a/an/the and surplus spaces removed, F1 over words. Japanese follows JGLUE's change to them (github.com/yahoojapan/JGLUE,
fine-tuning/patch): lower case, a closing 。 and surplus spaces removed, F1 over characters.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _spaces(text: str) -> str:
    return " ".join(text.split())


def normalise_english(text: str) -> str:
    """Lower case without ASCII punctuation, articles and surplus spaces."""
    return _spaces(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def normalise_japanese(text: str) -> str:
    """Lower case without closing 。 and surplus spaces."""
    return _spaces(text.lower().rstrip("。"))


@dataclass(frozen=True)
class Answers:
    """How answers of a language are compared: how a text is normalised, and what F1 counts in a normalised text."""

    normalise: Callable[[str], str]
    units: Callable[[str], Sequence[str]]


LANGUAGES = {"en": Answers(normalise_english, str.split), "ja": Answers(normalise_japanese, list)}


def exact_match(predicted: str, gold: str, language: str = "en") -> float:
    """1.0 where both are the same text after normalisation, else 0.0."""
    normalise = LANGUAGES[language].normalise
    return float(normalise(predicted) == normalise(gold))


def answer_f1(predicted: str, gold: str, language: str = "en") -> float:
    """F1 of the words (Japanese: characters) that both have; where one is empty, 1.0 if both are, else 0.0."""
    how = LANGUAGES[language]
    found, wanted = how.units(how.normalise(predicted)), how.units(how.normalise(gold))
    if not found or not wanted:
        return float(not found and not wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def _score(predicted: str, golds: Sequence[str], language: str) -> tuple[float, float]:
    """The best of all gold answers; a question without any has the empty answer."""
    wanted = [gold for gold in golds if LANGUAGES[language].normalise(gold)] or [""]
    return (
        max(exact_match(predicted, gold, language) for gold in wanted),
        max(answer_f1(predicted, gold, language) for gold in wanted),
    )


def evaluate_answers(
    golds: Mapping[str, Sequence[str]], predictions: Mapping[str, str], language: str = "en"
) -> dict[str, float]:
    """Exact match and F1 in per cent over all questions, and, where some have no answer, over those with and those without.

    Args:
        golds: the answers of each question's id, none for an impossible one.
        predictions: a text for each id, "" for "no answer"; a question without a prediction scores 0, as in SQuAD 1.1.
        language: "en" or "ja", see the module.

    Returns:
        exact, f1, total; with impossible questions also HasAns_exact, HasAns_f1, HasAns_total and the same of NoAns.
    """
    if not golds:
        raise ValueError("there is nothing to score: no questions were given")
    scores = {
        key: _score(predictions[key], texts, language) if key in predictions else (0.0, 0.0)
        for key, texts in golds.items()
    }
    has = [key for key in golds if golds[key]]
    has_not = [key for key in golds if not golds[key]]
    found: dict[str, float] = _mean(scores, list(golds), "")
    if has and has_not:
        found |= _mean(scores, has, "HasAns_") | _mean(scores, has_not, "NoAns_")
    return found


def _mean(scores: Mapping[str, tuple[float, float]], keys: list[str], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}exact": 100.0 * sum(scores[key][0] for key in keys) / len(keys),
        f"{prefix}f1": 100.0 * sum(scores[key][1] for key in keys) / len(keys),
        f"{prefix}total": len(keys),
    }


def best_threshold(
    golds: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float],
    language: str = "en",
) -> dict[str, float]:
    """The thresholds of "no answer" with the best exact match and the best F1 on these questions.

    A question is left unanswered where its `no_answer` score is above the threshold. The search is the official script's, but
    questions of one score are taken together, since no threshold can part them.

    Args:
        predictions: the best answer of each question that is not the empty one.
        no_answer: for each question a number that grows with the belief that it has no answer.

    Returns:
        best_exact, best_exact_threshold, best_f1, best_f1_threshold; scores in per cent.
    """
    order = sorted(golds, key=lambda key: no_answer[key])
    found: dict[str, float] = {}
    for index, name in enumerate(("exact", "f1")):
        # Below every score nothing is answered: right for the impossible questions alone.
        score = float(sum(not texts for texts in golds.values()))
        best, threshold = score, no_answer[order[0]] - 1.0
        for place, key in enumerate(order):
            answered = _score(predictions[key], golds[key], language)[index]
            score += answered if golds[key] else answered - 1.0
            last = place + 1 == len(order) or no_answer[order[place + 1]] > no_answer[key]
            if last and score > best:
                best, threshold = score, no_answer[key]
        found |= {f"best_{name}": 100.0 * best / len(golds), f"best_{name}_threshold": threshold}
    return found
