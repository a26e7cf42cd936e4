"""How many real tokens a second one core makes into pre-training batches, and what pairs, packing and building take of the time.

    python -m benchmarks.loader                          # synthetic text with sentence lengths as English Wikipedia's
    python -m benchmarks.loader --corpus FOLDER          # a corpus that `bertfast data build` wrote
    python -m benchmarks.loader --workers 2 --json out.json

The need is twice what the fastest planned trainer eats, 1.1 M tokens/s, over the 16 cores beside it. Each case plans one block of
documents and builds its batches, in C++ and in NumPy, which make the same ones. A second table has what the trainer's own queue
delivers out of worker processes (`benchmarks.delivery`).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks import delivery
from bertfast import _ext
from bertfast.cli.common import check_target, console, fail, write_json
from bertfast.data.corpus import Corpus, CorpusError
from bertfast.data.masking import MaskOptions, Vocabulary
from bertfast.data.packing import best_fit
from bertfast.data.pairs import PairOptions, make_pairs, sample_lengths
from bertfast.data.plan import Planner, PretrainDataOptions
from bertfast.data.pretraining import pretraining_batch
from bertfast.data.random import Purpose, permutation

NEED = 2 * 1.1e6 / 16  # real tokens a second and core
_VOCABULARY = 30_522
_ROUNDS = {"C++": 5, "NumPy": 1}
_CASES = (  # (max_seq_length, token budget, whole words), as in the two phases of BERT's pre-training
    (128, 8192, False),
    (128, 8192, True),
    (512, 16384, False),
)
_SMALLER = 20  # NumPy gets this part of the documents' tokens


@dataclass
class Result:
    """One case. Seconds are of the fastest of some rounds over the same block of documents.

    Attributes:
        tokens: real tokens, special ones among them.
        fill: the share of the static shape that is real.
        pairs, packing, batches: seconds; packing has the orders of samples and batches in it.
    """

    implementation: str
    max_seq_length: int
    token_budget: int
    whole_word: bool
    tokens: int
    fill: float
    pairs: float
    packing: float
    batches: float

    @property
    def seconds(self) -> float:
        return self.pairs + self.packing + self.batches

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def synthetic(documents: int) -> Corpus:
    """Documents of sentences with lengths as English Wikipedia has them: about 24 pieces a sentence, 22 sentences a document."""
    random = np.random.default_rng(0)
    counts = np.clip(random.lognormal(2.7, 0.85, documents), 1, 400).astype(np.int64)
    lengths = np.clip(random.lognormal(3.05, 0.5, counts.sum()), 1, 250).astype(np.int32)
    ids = random.integers(1000, _VOCABULARY, lengths.sum(dtype=np.int64)).astype(np.uint16)
    sentences = np.concatenate([[0], np.cumsum(counts)])
    tokens = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[sentences]
    return Corpus([ids], [lengths], tokens, sentences)


def synthetic_vocabulary() -> Vocabulary:
    """bert-base-uncased's special ids and its share of continuing pieces, about a fifth."""
    ids = np.arange(_VOCABULARY)
    return Vocabulary(_VOCABULARY, 101, 102, 0, 103, continuation=ids % 5 == 4, special=ids < 1000)


def measure(planner: Planner, implementation: str, rounds: int) -> Result:
    """Times the first block of the first epoch, step by step as the planner does it."""
    corpus, options = planner.corpus, planner.options
    documents = planner.documents(0)[0]
    seed, best = options.seed, [float("inf")] * 3
    members = planner.block(0, 0).members
    real = places = 0
    for _ in range(rounds):
        start = time.perf_counter()
        rows = make_pairs(corpus, documents, options.pairs, seed, 0)
        paired = time.perf_counter()
        rows = rows[permutation(len(rows), seed, 0, Purpose.SAMPLES)]
        best_fit(sample_lengths(rows), np.arange(len(rows)), options.token_budget, planner.sequences)
        permutation(len(members), seed, 0, Purpose.BATCHES)
        packed = time.perf_counter()
        real = places = 0
        for each in members:
            batch = pretraining_batch(corpus, rows[each], planner.masker, seed, 0, shape=planner.shape)
            real, places = real + batch.real_tokens, places + len(batch.input_ids)
        times = (paired - start, packed - paired, time.perf_counter() - packed)
        best = [min(pair) for pair in zip(best, times, strict=True)]
    pairs = options.pairs
    return Result(
        implementation, pairs.max_seq_length, options.token_budget, options.masks.whole_word, real, real / places, *best
    )


@contextmanager
def numpy_only() -> Iterator[None]:
    """Objects that are made inside do without the extension."""
    loaded, before = _ext.load(), os.environ.get("BERTFAST_DISABLE_EXT", "")
    os.environ["BERTFAST_DISABLE_EXT"], _ext._module = "1", None
    try:
        yield
    finally:
        os.environ["BERTFAST_DISABLE_EXT"], _ext._module = before, loaded


def cases(corpus: Corpus, vocabulary: Vocabulary, block_tokens: int) -> Iterator[Result]:
    for max_seq_length, budget, whole_word in _CASES:
        pairs, masks = PairOptions(max_seq_length), MaskOptions(whole_word=whole_word)
        options = PretrainDataOptions(0, budget, pairs, masks, block_tokens=block_tokens)
        if _ext.load() is not None:
            yield measure(Planner(corpus, vocabulary, options), "C++", _ROUNDS["C++"])
        with numpy_only():
            smaller = replace(options, block_tokens=max(1, block_tokens // _SMALLER))
            plain = Corpus(
                corpus.token_chunks.arrays, corpus.length_chunks.arrays, corpus.document_tokens, corpus.document_sentences
            )  # fmt: skip
            yield measure(Planner(plain, vocabulary, smaller), "NumPy", _ROUNDS["NumPy"])


def table_of(results: list[Result], what: str) -> Table:
    table = Table(
        title=f"pre-training batches on one core, {what}",
        caption=f"need: 2 x 1.1 M tokens/s over 16 cores = {NEED:,.0f} real tokens/s on each; shares of the time; "
        f"NumPy gets a block of 1/{_SMALLER} of the tokens, whose last batches weigh more in its fill",
    )
    for name in (
        "by",
        "length",
        "budget",
        "words",
        "tokens/s",
        "times the need",
        "pairs",
        "packing",
        "batches",
        "fill",
    ):
        table.add_column(name, justify="right")
    for r in results:
        shares = [f"{seconds / r.seconds:.0%}" for seconds in (r.pairs, r.packing, r.batches)]
        whole = "whole" if r.whole_word else "pieces"
        rate = f"{r.tokens_per_second:,.0f}"
        need = f"{r.tokens_per_second / NEED:.1f}x"
        fill = f"{r.fill:.2%}"
        table.add_row(r.implementation, str(r.max_seq_length), f"{r.token_budget:,}", whole, rate, need, *shares, fill)
    return table


def main(
    corpus: Annotated[Path | None, typer.Option(help="a corpus's folder; synthetic text where not given")] = None,
    documents: Annotated[int, typer.Option(min=2, help="documents of synthetic text")] = 10_000,
    workers: Annotated[
        list[int],
        typer.Option(min=0, help="worker processes of the queue's rows, given once for each; 0 leaves them out"),
    ] = [1, 2, 4],  # noqa: B006
    json_path: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Measure the loader on one core and compare it with what a trainer needs. Exit status 1 where C++ is below the need,
    or where no number of workers delivers what is asked of the queue."""
    check_target("--json", json_path)
    torch.set_num_threads(1)
    try:
        opened = Corpus.open(corpus) if corpus else synthetic(documents)
    except CorpusError as error:
        raise fail(str(error)) from None
    vocabulary = synthetic_vocabulary() if corpus is None else _vocabulary(corpus)
    what = (
        f"{opened.documents:,} documents, {opened.tokens:,} tokens, {opened.tokens / opened.sentences:.0f} a sentence"
    )
    with console.status("measuring"):
        results = list(cases(opened, vocabulary, min(opened.tokens, PretrainDataOptions().block_tokens)))
        delivered = list(delivery.cases(opened, vocabulary, [count for count in workers if count]))
    console.print(table_of(results, what))
    if delivered:
        console.print(delivery.table_of(delivered))
    if json_path:
        rows: list[dict[str, Any]] = [
            asdict(r) | {"tokens_per_second": r.tokens_per_second, "times_need": r.tokens_per_second / NEED}
            for r in results
        ]
        write_json(
            json_path, {"need": NEED, "corpus": what, "results": rows, "delivered": [each.row() for each in delivered]}
        )
    lengths = {each.max_seq_length for each in delivered}
    enough = {each.max_seq_length for each in delivered if each.is_enough}
    if lengths - enough or any(r.implementation == "C++" and r.tokens_per_second < NEED for r in results):
        raise typer.Exit(1)


def _vocabulary(corpus: Path) -> Vocabulary:
    from bertfast.data.tokenizer import load_tokenizer

    return Vocabulary.of(load_tokenizer(corpus / "tokenizer"))


if __name__ == "__main__":
    typer.run(main)
