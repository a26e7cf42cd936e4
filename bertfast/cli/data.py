"""`bertfast data`: from text to a corpus, and a look at what the model is given."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from bertfast.cli.common import check_target, console, fail, note, notes, one_line
from bertfast.cli.flags import simple
from bertfast.options import option

app = typer.Typer(no_args_is_help=True, help="Vocabularies and corpora from text, and pictures of batches.")

BAD_LINES_NAMED = 3
BAD_LINES_READ = 1000  # to guess their encoding
SECONDS_BETWEEN_LINES = 10.0  # of progress where the output is no terminal


@dataclass(kw_only=True)
class SourceOptions:
    """Where text comes from."""

    sources: list[Path] | None = option(None, "Text files, plain or gzip.", argument=True)
    format: str = option("text", "text (a sentence a line), paragraphs, wikitext, squad, squad-paragraphs or jsonl")
    field: str = option("text", "the field with the text, in JSONL and data sets")
    encoding: str | None = option(
        None, "of the text, as Python names it: utf-16, cp932, euc_jp, cp1252, ...; UTF-8 unless said"
    )
    splitter: str | None = option(
        None, "is a line a sentence, or a paragraph to be split?", choices=("lines", "sentences")
    )
    dataset: str | None = option(
        None, "a data set of `datasets`: a saved folder, a name, or json, csv, ... with SOURCES as its files"
    )
    config: str | None = option(None, "configuration of the data set")
    split: str = option("train", "split of the data set")
    special_tokens: list[str] | None = option(
        None, 'tokens of your own that are never cut, parted by commas: "[E1],[/E1]"'
    )
    workers: int | None = option(
        None, "processes, one for each core unless said; the result does not depend on it", low=1
    )

    def source(self) -> Any:
        """The documents. Ends the command where there are none."""
        from bertfast.data.sources import FORMATS, DatasetSource, FileSource

        paths = self.sources or []
        if self.dataset is not None:
            if self.encoding is not None:
                raise fail("--encoding is for text files; a data set has its own")
            return DatasetSource(self.dataset, self.config, self.split, self.field, paths)
        if not paths:
            raise fail("no source: name text files, or a data set by --dataset")
        if self.format not in FORMATS:
            known = "; ".join(f"{name} ({kind.what})" for name, kind in FORMATS.items())
            raise fail(f"--format {self.format}: known are {known}")
        return FileSource(paths, self.format, self.field, self.encoding)

    def special(self) -> tuple[str, ...]:
        return tuple(token for token in self.special_tokens or () if token)

    def processes(self) -> int:
        return self.workers or os.cpu_count() or 1


@dataclass(kw_only=True)
class BuildOptions(SourceOptions):
    """What `bertfast data build` takes."""

    tokenizer: Path = option(help="folder of a tokenizer: `bertfast data vocab`, or a checkpoint's")
    out: Path = option(Path("corpus"), "the corpus' folder; made in OUT.building until it is whole")
    holdout: float = option(0.0, "share of the documents for OUT/eval, the rest in OUT/train")
    bad_lines: str = option(
        "skip", choices={"skip": "name bad lines in skipped.jsonl and go on", "refuse": "stop at a bad line"}
    )


@dataclass(kw_only=True)
class VocabOptions(SourceOptions):
    """What `bertfast data vocab` takes."""

    out: Path = option(help="the tokenizer's folder; transformers' AutoTokenizer loads it")
    size: int = option(8000, "pieces, special tokens and alphabet included")
    language: str = option("en", "en or ja (MeCab words)")
    lowercase: bool | None = option(None, "lower-case the text; English does unless told otherwise")
    min_frequency: int = option(2, "how often a pair must occur to become a piece")
    limit_alphabet: int | None = option(None, "characters kept; up to 1,000 for en, 6,000 for ja")
    words: str = option("morphemes", "Japanese: morphemes, or inflected (transformers does not know it)")


@dataclass(kw_only=True)
class ShowOptions:
    """What `bertfast data show` takes."""

    corpus: Path | None = option(None, "A corpus of `data build`; without one, the worked example.", argument=True)
    text: list[str] | None = option(None, "text to show instead; two make a pair", repeated=True)
    tokenizer: Path | None = option(None, "folder of one for --text; else its words are the vocabulary")
    png: Path | None = option(None, "draw the sequences into this file")
    sample: int = option(0, "number of the corpus' batch", low=0)
    masked: bool = option(False, "with what is masked and is to be predicted")
    sequences: int = option(4, "how many sequences of the batch", low=1)
    seed: int = option(0, "of pairs and masks")


@contextmanager
def _mistakes() -> Iterator[None]:
    from bertfast.data.workers import WorkerError

    with one_line(ValueError, ImportError, OSError, WorkerError), notes():
        yield


@contextmanager
def _progress(source: Any) -> Iterator[Callable[[dict[str, int]], None]]:
    """A bar on a terminal, a plain line now and then elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    started = last = time.monotonic()
    before: dict[str, int] = {}

    def line(totals: dict[str, int]) -> str:
        seconds = max(time.monotonic() - started, 1e-9)
        rate = (totals["tokens"] - before.get("tokens", 0)) / seconds
        return (
            f"{totals['documents']:,} documents, {totals['tokens']:,} tokens, {rate:,.0f} tokens/s, "
            f"{totals['skipped']:,} bad lines"
        )

    if not console.is_terminal:

        def say(totals: dict[str, int]) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                console.print(
                    f"{source.progress.done / max(source.progress.total, 1):4.0%}  {line(totals)}", highlight=False
                )

        yield say
        return
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=source.progress.total)
        yield lambda totals: bar.update(task, completed=source.progress.done, description=line(totals))


def _build(given: BuildOptions) -> None:
    from bertfast.data.build import build as build_corpus
    from bertfast.data.build import finished, sides
    from bertfast.data.build_options import Options
    from bertfast.data.corpus import read_manifest
    from bertfast.data.show import corpus_remarks
    from bertfast.data.tokenizer import load_tokenizer

    with _mistakes():
        pieces, out = load_tokenizer(given.tokenizer), given.out
        if own := given.special():
            pieces.add_special_tokens(own)
        source = given.source()
        options = Options(given.splitter or source.splitter, given.holdout, given.bad_lines == "refuse")
        there = finished(out)
        with _progress(source) as report:
            manifest = build_corpus(source, pieces, out, options, workers=given.processes(), report=report)
        made = {folder: read_manifest(folder) for folder in sides(out, options).values()}
        remarks = {remark: folder for folder in made for remark in corpus_remarks(folder)}
    for folder, facts in made.items():
        counts = ", ".join(f"{facts[name]:,} {name}" for name in ("documents", "sentences", "tokens"))
        console.print(f"{folder}: {'already built: ' if there else ''}{counts}", highlight=False)
    if manifest["skipped"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items())
        bad = _bad_lines(out / "skipped.jsonl")
        first = (
            f"the first is {bad[0]['where']} ({bad[0]['reason']}: {bad[0]['detail']})"
            if bad
            else "none was written down"
        )
        console.print(
            f"not taken: {reasons}; {first}, each is named in {out / 'skipped.jsonl'}", highlight=False, markup=False
        )
        _tell_encoding([each["detail"] for each in bad if each["reason"] == "invalid UTF-8"])
    for remark, folder in remarks.items():
        note(f"{folder}: {remark}")


def _bad_lines(skipped: Path) -> list[dict[str, str]]:
    """The first bad lines of a build."""
    with skipped.open("rb") as lines:
        return [json.loads(line) for line in islice(lines, BAD_LINES_READ)]


def _tell_encoding(details: list[str]) -> None:
    from bertfast.data.remarks import encoding_remark

    if remark := encoding_remark(details):
        note(remark)


def _vocab(given: VocabOptions) -> None:
    from bertfast.data.lines import BadLine
    from bertfast.data.vocab import VocabularyOptions, train_vocabulary

    documents, bad = 0, 0
    named: list[str] = []
    details: list[str] = []

    def count(item: Any) -> None:
        nonlocal documents, bad
        if not isinstance(item, BadLine):
            documents += 1
            return
        bad += 1
        if item.reason == "invalid UTF-8" and len(details) < BAD_LINES_READ:
            details.append(item.detail)
        if bad <= BAD_LINES_NAMED:
            named.append(f"{item.where} ({item.reason}{f': {item.detail}' if item.detail else ''})")

    with _mistakes():
        source = given.source()
        options = VocabularyOptions(
            given.size,
            given.language,
            given.language == "en" if given.lowercase is None else given.lowercase,
            given.min_frequency,
            given.limit_alphabet,
            given.words,
            given.special(),
        )
        paragraphs = (given.splitter or source.splitter) == "sentences"
        made = train_vocabulary(source, given.out, options, split=paragraphs, workers=given.processes(), on_item=count)
    if bad:
        more = f" and {bad - len(named):,} more" if bad > len(named) else ""
        note(f"{bad:,} bad lines were left out: {', '.join(named)}{more}")
        _tell_encoding(details)
    console.print(f"{given.out}: {made.vocab_size:,} pieces from {documents:,} documents", highlight=False)
    if made.vocab_size < given.size:
        note(f"the text gives no more than {made.vocab_size:,} pieces, {given.size:,} were asked for")


def _check_texts(texts: list[str]) -> None:
    """Texts of the command line that cannot be read; Python makes surrogates of bytes that are no UTF-8."""
    from bertfast.data.lines import fault

    for number, each in enumerate(texts, 1):
        if wrong := fault(each):
            raise fail(f"--text number {number}: {wrong[0]} ({wrong[1]}); give text in UTF-8")
        if not each.strip():
            raise fail(f"--text number {number} is empty; give it something to show")


def _show(given: ShowOptions) -> None:
    from bertfast.cli.tables import print_sequence
    from bertfast.data import show as shown
    from bertfast.data.tokenizer import load_tokenizer

    check_target("--png", given.png)
    with _mistakes():
        if given.corpus is not None:
            batch, pieces = shown.corpus_batch(given.corpus, sample=given.sample, seed=given.seed)
        else:
            texts = given.text or list(shown.EXAMPLE)
            _check_texts(texts)
            pieces = load_tokenizer(given.tokenizer) if given.tokenizer else shown.example_tokenizer(texts)
            batch = shown.text_batch(pieces, texts, masked=given.masked, seed=given.seed)
        chosen = shown.sequences(batch, pieces, masked=given.masked)
        if given.png is not None:
            from bertfast.data.picture import draw

            title = "What BERT reads" + (", and what it must predict" if given.masked else "")
            few = chosen[: given.sequences]
            drawn, tokens = draw(few, given.png, title), sum(len(each.tokens) for each in few)
            first = (
                f", the first {drawn} of {tokens} tokens (more would be too high to look at)" if drawn < tokens else ""
            )
            console.print(f"wrote {given.png}: {len(few)} of {len(chosen)} sequences{first}", highlight=False)
        for number, sequence in enumerate(chosen[: given.sequences]):
            print_sequence(number, sequence)
        # Static shapes repeat the last bound for places that no sequence took.
        bounds = list(dict.fromkeys(batch.cu_seqlens.tolist())) if batch.cu_seqlens is not None else []
        console.print(f"cu_seqlens {bounds}", highlight=False)
        count = f"{batch.sequences} sequence{'s' if batch.sequences != 1 else ''}"
        console.print(f"{batch.real_tokens} tokens in {count}, {len(batch.input_ids)} rows", highlight=False)
        if given.corpus is not None:
            for remark in shown.corpus_remarks(given.corpus, seed=given.seed):
                note(remark)
        if given.corpus is None and given.tokenizer is None:
            console.print("ids are of a vocabulary made of these words alone; see --tokenizer", highlight=False)


for _command in (
    simple(
        "build",
        BuildOptions,
        _build,
        "Tokenise documents into a corpus for pre-training. The same command goes on with a build that was stopped.",
    ),
    simple(
        "vocab",
        VocabOptions,
        _vocab,
        "Train a WordPiece vocabulary on text: the same text and options give the same files.",
    ),
    simple(
        "show",
        ShowOptions,
        _show,
        "Print (and draw) a batch as the model is given it: tokens, positions, segments, words and masks.",
    ),
):
    app.command()(_command)
