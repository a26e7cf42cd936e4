"""Metrics of classification and regression, from arrays of what was predicted and what was expected.

Each is checked against scikit-learn in the tests; it is not needed at run time. Undefined quotients (no such prediction, a
constant column) are 0, as scikit-learn has them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _both(predicted: ArrayLike, expected: ArrayLike) -> tuple[NDArray, NDArray]:
    found, wanted = np.asarray(predicted), np.asarray(expected)
    if found.shape != wanted.shape or found.ndim != 1:
        raise ValueError(
            f"predictions and labels must be of one shape [N]: {found.shape} and {wanted.shape} were given"
        )
    if not found.size:
        raise ValueError("there is nothing to score: no predictions were given")
    return found, wanted


def _divide(above: NDArray, below: NDArray) -> NDArray:
    return np.divide(above, below, out=np.zeros(np.shape(above), dtype=np.float64), where=np.asarray(below) != 0)


def confusion(predicted: ArrayLike, expected: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: row the class expected, column the class predicted, both int [N] in 0..classes-1."""
    found, wanted = _both(predicted, expected)
    counts = np.bincount(wanted.astype(np.int64) * classes + found.astype(np.int64), minlength=classes * classes)
    return counts.reshape(classes, classes)


def accuracy(predicted: ArrayLike, expected: ArrayLike) -> float:
    """The share of predictions [N] that equal their label."""
    found, wanted = _both(predicted, expected)
    return float(np.mean(found == wanted))


def f1_per_class(predicted: ArrayLike, expected: ArrayLike, classes: int) -> NDArray[np.float64]:
    """2 * right / (predicted + expected) of each class, [classes]."""
    table = confusion(predicted, expected, classes)
    return _divide(2.0 * np.diag(table), table.sum(0) + table.sum(1))


def macro_f1(predicted: ArrayLike, expected: ArrayLike, classes: int) -> float:
    """The mean F1 of the classes that occur, as a label or as a prediction."""
    table = confusion(predicted, expected, classes)
    occurs = (table.sum(0) + table.sum(1)) > 0
    return float(f1_per_class(predicted, expected, classes)[occurs].mean())


def binary_f1(predicted: ArrayLike, expected: ArrayLike, positive: int = 1) -> float:
    """F1 of the class `positive` against all others, as GLUE has it for MRPC and QQP."""
    found, wanted = _both(predicted, expected)
    return float(f1_per_class(found == positive, wanted == positive, 2)[1])


def matthews(predicted: ArrayLike, expected: ArrayLike, classes: int) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004), -1 to 1; GLUE's metric of CoLA."""
    table = confusion(predicted, expected, classes).astype(np.float64)
    total, right = table.sum(), np.trace(table)
    found, wanted = table.sum(0), table.sum(1)
    covariance = right * total - found @ wanted
    spread = np.sqrt((total**2 - found @ found) * (total**2 - wanted @ wanted))
    return float(covariance / spread) if spread > 0 else 0.0


def pearson(predicted: ArrayLike, expected: ArrayLike) -> float:
    """Pearson's correlation of two columns [N] of numbers."""
    found, wanted = (np.asarray(x, dtype=np.float64) for x in _both(predicted, expected))
    found, wanted = found - found.mean(), wanted - wanted.mean()
    spread = np.sqrt((found @ found) * (wanted @ wanted))
    return float(found @ wanted / spread) if spread > 0 else 0.0


def _ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[group]


def spearman(predicted: ArrayLike, expected: ArrayLike) -> float:
    """Spearman's rank correlation of two columns [N] of numbers."""
    found, wanted = _both(predicted, expected)
    return pearson(_ranks(found), _ranks(wanted))


def class_scores(classes: int) -> tuple[str, ...]:
    """The names of what `classification` gives for so many classes."""
    return ("accuracy", *(("f1",) if classes == 2 else ()), "macro_f1", "matthews")


def classification(predicted: ArrayLike, expected: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """accuracy, f1 (of class 1; where there are two classes alone), macro_f1 and matthews."""
    classes = len(labels)
    found = {
        "accuracy": accuracy(predicted, expected),
        "f1": binary_f1(predicted, expected),
        "macro_f1": macro_f1(predicted, expected, classes),
        "matthews": matthews(predicted, expected, classes),
    }
    return {name: found[name] for name in class_scores(classes)}


def regression(predicted: ArrayLike, expected: ArrayLike) -> dict[str, float]:
    """pearson, spearman and mse of numbers [N], as GLUE has the first two for STS-B and JGLUE for JSTS."""
    found, wanted = _both(predicted, expected)
    return {
        "pearson": pearson(found, wanted),
        "spearman": spearman(found, wanted),
        "mse": float(np.mean((found - wanted) ** 2)),
    }
