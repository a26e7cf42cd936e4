"""The stage loader: real tokens a second that the trainer's own queue delivers into pinned memory, and the cores that it takes."""

from collections.abc import Iterator

from benchmarks import delivery
from benchmarks.gpu import measure, results
from benchmarks.loader import synthetic, synthetic_vocabulary

DOCUMENTS = 10_000
WORKERS = (1, 2, 4)
BATCHES = 2000


def run(only: str = "", done: frozenset[str] = frozenset()) -> Iterator[results.Line]:
    """A line for each length and number of worker processes; `ok` where that delivers what a trainer takes."""
    names = {
        f"up to {length}, {budget} tokens, workers: {workers}": (length, budget, workers)
        for length, budget in delivery.CASES
        for workers in WORKERS
    }
    left = [name for name in names if only in name and name not in done]
    if not left:
        return
    corpus, vocabulary = synthetic(DOCUMENTS), synthetic_vocabulary()
    for name in left:
        try:
            one = delivery.measure(corpus, vocabulary, *names[name], batches=BATCHES)
        except Exception as problem:
            yield results.line("loader", name, ok=False, error=measure.explain(problem))
        else:
            yield results.line("loader", name, ok=one.is_enough, target=delivery.TARGET, **one.row())
