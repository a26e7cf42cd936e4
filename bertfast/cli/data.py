"""`bertfast data`: from text to a corpus, and a look at what the model is given."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bertfast.cli.common import check_target, console, fail, note, notes

app = typer.Typer(no_args_is_help=True, help="Vocabularies and corpora from text, and pictures of batches.")

BAD_LINES_NAMED = 3
BAD_LINES_READ = 1000  # to guess their encoding
SECONDS_BETWEEN_LINES = 10.0  # of progress where the output is no terminal


class Splitter(StrEnum):
    lines = "lines"
    sentences = "sentences"


class BadLines(StrEnum):
    skip = "skip"
    refuse = "refuse"


Sources = Annotated[list[Path] | None, typer.Argument(help="Text files, plain or gzip.")]
FormatOption = Annotated[
    str, typer.Option(help="text (a sentence a line), paragraphs, wikitext, squad, squad-paragraphs or jsonl.")
]
Field = Annotated[str, typer.Option(help="The field with the text, in JSONL and data sets.")]
DatasetOption = Annotated[
    str | None,
    typer.Option(help="A data set of `datasets`: a saved folder, a name, or json, csv, ... with SOURCE as its files."),
]
SplitterOption = Annotated[Splitter | None, typer.Option(help="Is a line a sentence, or a paragraph to be split?")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of the data set.")]
SplitOption = Annotated[str, typer.Option(help="Split of the data set.")]
EncodingOption = Annotated[
    str | None,
    typer.Option(help="Of the text, as Python names it: utf-16, cp932, euc_jp, cp1252, ...; UTF-8 unless said."),
]
SpecialTokensOption = Annotated[
    str | None,
    # Brackets are rich's markup, in which [/E1] ends what nothing began.
    typer.Option(help=escape('Tokens of your own that are never cut, parted by commas: "[E1],[/E1]".')),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes, one for each core unless said. The result does not depend on it.")
]


@contextmanager
def _mistakes() -> Iterator[None]:
    """What a user can mend ends as one line."""
    from bertfast.data.workers import WorkerError

    try:
        with notes():
            yield
    except (ValueError, ImportError, OSError, WorkerError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise fail(f"{error.filename}: {error.strerror}") from None
        raise fail(str(error)) from None


def _source(
    paths: list[Path] | None,
    format: str,
    field: str,
    encoding: str | None,
    dataset: str | None,
    config: str | None,
    split: str,
) -> Any:
    from bertfast.data.sources import FORMATS, DatasetSource, FileSource

    if dataset is not None:
        if encoding is not None:
            raise fail("--encoding is for text files; a data set has its own")
        return DatasetSource(dataset, config, split, field, paths or [])
    if not paths:
        raise fail("no source: name text files, or a data set by --dataset")
    if format not in FORMATS:
        raise fail(
            f"--format {format}: known are " + "; ".join(f"{name} ({kind.what})" for name, kind in FORMATS.items())
        )
    return FileSource(paths, format, field, encoding)


def _special(tokens: str | None) -> tuple[str, ...]:
    return tuple(token.strip() for token in (tokens or "").split(",") if token.strip())


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


@app.command()
def build(
    tokenizer: Annotated[Path, typer.Option(help="Folder of a tokenizer: `bertfast data vocab`, or a checkpoint's.")],
    sources: Sources = None,
    out: Annotated[Path, typer.Option(help="The corpus' folder; made in OUT.building until it is whole.")] = Path(
        "corpus"
    ),
    format: FormatOption = "text",
    field: Field = "text",
    encoding: EncodingOption = None,
    splitter: SplitterOption = None,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = "train",
    holdout: Annotated[float, typer.Option(help="Share of the documents for OUT/eval, the rest in OUT/train.")] = 0.0,
    bad_lines: Annotated[
        BadLines, typer.Option(help="Name bad lines in skipped.jsonl and go on, or stop at one.")
    ] = BadLines.skip,
    special_tokens: SpecialTokensOption = None,
    workers: Workers = None,
) -> None:
    """Tokenise documents into a corpus for pre-training. The same command goes on with a build that was stopped."""
    from bertfast.data.build import build as build_corpus
    from bertfast.data.build import finished, sides
    from bertfast.data.build_options import Options
    from bertfast.data.corpus import read_manifest
    from bertfast.data.show import corpus_remarks
    from bertfast.data.tokenizer import load_tokenizer

    with _mistakes():
        pieces = load_tokenizer(tokenizer)
        if own := _special(special_tokens):
            pieces.add_special_tokens(own)
        source = _source(sources, format, field, encoding, dataset, config, split)
        options = Options(splitter or source.splitter, holdout, bad_lines is BadLines.refuse)
        there = finished(out)
        with _progress(source) as report:
            manifest = build_corpus(source, pieces, out, options, workers=workers or os.cpu_count() or 1, report=report)
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


@app.command()
def vocab(
    out: Annotated[Path, typer.Option(help="The tokenizer's folder; transformers' AutoTokenizer loads it.")],
    sources: Sources = None,
    size: Annotated[int, typer.Option(help="Pieces, special tokens and alphabet included.")] = 8000,
    language: Annotated[str, typer.Option(help="en or ja (MeCab words).")] = "en",
    lowercase: Annotated[
        bool | None, typer.Option(help="Lower-case the text; English does unless told otherwise.")
    ] = None,
    min_frequency: Annotated[int, typer.Option(help="How often a pair must occur to become a piece.")] = 2,
    limit_alphabet: Annotated[
        int | None, typer.Option(help="Characters kept; up to 1,000 for en, 6,000 for ja.")
    ] = None,
    words: Annotated[
        str, typer.Option(help="Japanese: morphemes, or inflected (transformers does not know it).")
    ] = "morphemes",
    format: FormatOption = "text",
    field: Field = "text",
    encoding: EncodingOption = None,
    splitter: SplitterOption = None,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = "train",
    special_tokens: SpecialTokensOption = None,
    workers: Workers = None,
) -> None:
    """Train a WordPiece vocabulary on text: the same text and options give the same files."""
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
        source = _source(sources, format, field, encoding, dataset, config, split)
        lower = language == "en" if lowercase is None else lowercase
        options = VocabularyOptions(
            size, language, lower, min_frequency, limit_alphabet, words, _special(special_tokens)
        )
        paragraphs = (splitter or source.splitter) == "sentences"
        made = train_vocabulary(
            source, out, options, split=paragraphs, workers=workers or os.cpu_count() or 1, on_item=count
        )
    if bad:
        more = f" and {bad - len(named):,} more" if bad > len(named) else ""
        note(f"{bad:,} bad lines were left out: {', '.join(named)}{more}")
        _tell_encoding(details)
    console.print(f"{out}: {made.vocab_size:,} pieces from {documents:,} documents", highlight=False)
    if made.vocab_size < size:
        note(f"the text gives no more than {made.vocab_size:,} pieces, {size:,} were asked for")


def _check_texts(texts: list[str]) -> None:
    """Texts of the command line that cannot be read; Python makes surrogates of bytes that are no UTF-8."""
    from bertfast.data.lines import fault

    for number, each in enumerate(texts, 1):
        if wrong := fault(each):
            raise fail(f"--text number {number}: {wrong[0]} ({wrong[1]}); give text in UTF-8")
        if not each.strip():
            raise fail(f"--text number {number} is empty; give it something to show")


@app.command()
def show(
    corpus: Annotated[
        Path | None, typer.Argument(help="A corpus of `data build`; without one, the worked example.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text to show instead; two make a pair.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of one for --text; else its words are the vocabulary.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the sequences into this file.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Number of the corpus' batch.")] = 0,
    masked: Annotated[bool, typer.Option(help="With what is masked and is to be predicted.")] = False,
    sequences: Annotated[int, typer.Option(min=1, help="How many sequences of the batch.")] = 4,
    seed: Annotated[int, typer.Option(help="Of pairs and masks.")] = 0,
) -> None:
    """Print (and draw) a batch as the model is given it: tokens, positions, segments, words and masks."""
    from bertfast.cli.tables import print_sequence
    from bertfast.data import show as shown
    from bertfast.data.tokenizer import load_tokenizer

    check_target("--png", png)
    with _mistakes():
        if corpus is not None:
            batch, pieces = shown.corpus_batch(corpus, sample=sample, seed=seed)
        else:
            texts = text or list(shown.EXAMPLE)
            _check_texts(texts)
            pieces = load_tokenizer(tokenizer) if tokenizer else shown.example_tokenizer(texts)
            batch = shown.text_batch(pieces, texts, masked=masked, seed=seed)
        chosen = shown.sequences(batch, pieces, masked=masked)
        if png is not None:
            from bertfast.data.picture import draw

            title = "What BERT reads" + (", and what it must predict" if masked else "")
            drawn, tokens = draw(chosen[:sequences], png, title), sum(len(each.tokens) for each in chosen[:sequences])
            first = (
                f", the first {drawn} of {tokens} tokens (more would be too high to look at)" if drawn < tokens else ""
            )
            console.print(f"wrote {png}: {len(chosen[:sequences])} of {len(chosen)} sequences{first}", highlight=False)
        for number, sequence in enumerate(chosen[:sequences]):
            print_sequence(number, sequence)
        # Static shapes repeat the last bound for places that no sequence took.
        bounds = list(dict.fromkeys(batch.cu_seqlens.tolist())) if batch.cu_seqlens is not None else []
        console.print(f"cu_seqlens {bounds}", highlight=False)
        count = f"{batch.sequences} sequence{'s' if batch.sequences != 1 else ''}"
        console.print(f"{batch.real_tokens} tokens in {count}, {len(batch.input_ids)} rows", highlight=False)
        if corpus is not None:
            for remark in shown.corpus_remarks(corpus, seed=seed):
                note(remark)
        if corpus is None and tokenizer is None:
            console.print("ids are of a vocabulary made of these words alone; see --tokenizer", highlight=False)
