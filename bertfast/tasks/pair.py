"""Classification and regression of single sentences and of sentence pairs: files to examples, examples to features."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.tasks.features import Feature, assemble, longest_first
from bertfast.tasks.lines import BadLines, DataError, text_fault, text_lines

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

FIELDS = ("sentence1", "sentence2", "label")
_HEADERS = ("sentence", "sentence1")  # of the first column


@dataclass(frozen=True)
class PairExample:
    """One line: a sentence or two, the label as written (None where the file has none), and its place."""

    first: str
    second: str | None
    label: str | None
    where: str


Row = tuple[str, list[str | None]]
"""A place, and first sentence, second sentence, label."""

Names = tuple[str, str | None, str | None]
"""Of first sentence, second sentence and label; None for what is not read."""


def field_names(fields: Sequence[str], sentences: int | None = None, labelled: bool = True) -> Names:
    """What the names given as fields stand for: first sentence, second, label; two names are a sentence and a label.

    Args:
        sentences: 1 or 2 of a line, None where that is not known.
        labelled: whether labels are read; where not, the label's name may be left out.

    Raises:
        DataError: too few or too many names, one of them empty, or one that stands twice.
    """
    if not labelled and len(fields) in (1, sentences):
        names: Names = (fields[0], fields[1] if len(fields) == 2 else None, None)
    elif len(fields) == 2:
        names = (fields[0], None, fields[1])
    elif len(fields) == 3:
        names = (fields[0], fields[1], fields[2])
    else:
        names = ("", None, None)
    if not all(fields) or len(set(fields)) < len(fields) or not names[0] or (sentences == 2 and names[1] is None):
        wanted = "first sentence, second, label" if sentences == 2 else "sentence1,sentence2,label or sentence,label"
        raise DataError(f"fields {','.join(fields) or 'without a name'}: name {wanted}, each once")
    return names


def _is_header(where: str, cells: Sequence[str], fields: Names) -> bool:
    """Whether the first line of a TSV file names its columns. DataError where it says that the label comes first."""
    first, last = (cell.strip().lower() for cell in (cells[0], cells[-1]))
    if first == "label" and len(cells) > 1:
        raise DataError(
            f"{where}: a header with the label first, but in a TSV file the label is the last column; "
            "change their order, or name it .csv and part the columns by commas"
        )
    return first in (*_HEADERS, fields[0].lower()) or last in ("label", (fields[2] or "label").lower())


def _tsv(path: Path, fields: Names, sentences: int | None, bad: BadLines) -> Iterator[Row]:
    """Columns without quoting: one or two sentences and, where there is one more column, the label.

    How many sentences there are is told by `sentences`, else by the first line: its last column is the label.
    """
    columns = 0
    for where, line in text_lines(path, bad):
        if not line.strip():
            continue
        cells = line.split("\t")
        if not columns:
            columns = len(cells)
            sentences = sentences or max(1, columns - 1)
            if not sentences <= columns <= sentences + 1 or sentences > 2:
                raise DataError(
                    f"{where}: {columns} columns; a TSV file has sentence<TAB>label or sentence<TAB>sentence<TAB>label"
                )
            if _is_header(where, cells, fields):
                bad.header = where
                continue
        if len(cells) != columns:
            bad.report(where, "another number of columns", f"{len(cells)} instead of {columns}")
            continue
        assert sentences is not None
        first, second = cells[0], cells[1] if sentences == 2 else None
        yield where, [first, second, cells[-1] if columns > sentences else None]


def _jsonl(path: Path, fields: Names, sentences: int | None, bad: BadLines) -> Iterator[Row]:
    for where, line in text_lines(path, bad):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            bad.report(where, "text that is no JSON", str(error))
            continue
        if not isinstance(item, dict):
            bad.report(where, "JSON that is no object", type(item).__name__)
            continue
        yield where, [_cell(item.get(name)) for name in fields]


def _csv(path: Path, fields: Names, sentences: int | None, bad: BadLines) -> Iterator[Row]:
    lines = [line for _, line in text_lines(path, bad)]
    reader = csv.DictReader(io.StringIO("\n".join(lines), newline=""))
    if fields[0] not in (reader.fieldnames or []):
        raise DataError(
            f"{path}:1: no column {fields[0]!r} in the header ({', '.join(reader.fieldnames or []) or 'empty'}); "
            "name the columns with --fields"
        )
    for item in reader:
        where = f"{path}:{reader.line_num}"
        if None in item or None in item.values():
            bad.report(where, "another number of columns", f"the header has {len(reader.fieldnames or [])}")
            continue
        yield where, [item.get(name) if name else None for name in fields]


def _cell(value: object) -> str | None:
    """JSON's numbers as they are written; what is neither text nor number is no cell."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


_READERS: dict[str, Callable[[Path, Names, int | None, BadLines], Iterator[Row]]] = {
    ".tsv": _tsv,
    ".txt": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _jsonl,
}


def read_pairs(
    path: Path,
    bad: BadLines,
    *,
    fields: Sequence[str] = FIELDS,
    sentences: int | None = None,
    labelled: bool = True,
) -> list[PairExample]:
    """The examples of a file: TSV (.tsv, .txt), JSONL (.jsonl, .json) or CSV with a header (.csv).

    Args:
        bad: where bad lines go: no UTF-8, no JSON, a missing or empty sentence, a missing label, a wrong number of columns.
        fields: names of first sentence, second sentence and label in JSONL and CSV, as `field_names` takes them; a file without
            the second has single sentences.
        sentences: 1 or 2; None tells it from the file (TSV: one less than there are columns).
        labelled: whether a line without a label is bad.

    Raises:
        DataError: the file is of another kind, cannot be read, is empty, mixes single sentences with pairs, or has a bad line that
            is not to be skipped.
    """
    if path.suffix not in _READERS:
        raise DataError(f"{path}: files end in {', '.join(_READERS)}")
    examples = []
    names = field_names(fields, sentences, labelled)
    for where, (first, second, label) in _READERS[path.suffix](path, names, sentences, bad):
        if not first or not first.strip():
            bad.report(where, f"no text in {names[0]}")
        elif (sentences == 2 and second is None) or (second is not None and not second.strip()):
            bad.report(where, f"no text in {names[1]}")
        elif labelled and not (label or "").strip():
            bad.report(where, "no label")
        elif wrong := text_fault(first, second):
            bad.report(where, *wrong)
        else:
            kept = None if sentences == 1 else second
            examples.append(PairExample(first, kept, label.strip() if label else None, where))
    if not examples:
        raise DataError(f"{path}: no usable line{'; ' + bad.summary() if bad else ', the file is empty'}")
    pairs = {example.second is not None for example in examples}
    if len(pairs) > 1:
        odd = next(e for e in examples if (e.second is None) == (examples[0].second is not None))
        raise DataError(f"{odd.where}: single sentences and pairs in one file; set --sentences to 1 or 2")
    return examples


def discover_labels(examples: Iterable[PairExample]) -> list[str]:
    """The labels that occur, sorted: as numbers where all are integers, else as text."""
    found = {example.label for example in examples if example.label is not None}
    try:
        return sorted(found, key=int)
    except ValueError:
        return sorted(found)


def with_targets(
    examples: Sequence[PairExample], labels: Sequence[str] | None, bad: BadLines
) -> tuple[list[PairExample], list[int | float]]:
    """The examples whose label can be trained on, and their targets: a class, or a number where `labels` is None."""
    kept: list[PairExample] = []
    targets: list[int | float] = []
    numbers = {label: index for index, label in enumerate(labels or ())}
    for example in examples:
        target: int | float | None
        if labels is None:
            target = _number(example.label)
            why = "a label that is no finite number"
        else:
            target = numbers.get(example.label or "")
            why = f"a label that is none of {', '.join(labels)}"
        if target is None:
            bad.report(example.where, why, repr(example.label))
            continue
        kept.append(example)
        targets.append(target)
    if not kept:
        raise DataError(f"{examples[0].where.rpartition(':')[0]}: no line has a usable label; {bad.summary()}")
    return kept, targets


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class PairFeatures:
    """Features in the order of the examples, and how many examples were cut to max_length."""

    features: list[Feature]
    cut: int


def pair_features(
    examples: Sequence[PairExample],
    tokenizer: "Tokenizer",
    max_length: int,
    targets: Sequence[int | float] | None = None,
) -> PairFeatures:
    """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] of at most `max_length` pieces, the longer segment cut first.

    Args:
        targets: the label of each example, given to the model as `labels`; None for prediction.

    Raises:
        DataError: max_length leaves no room for a piece of each segment.
    """
    pair = bool(examples) and examples[0].second is not None
    room = max_length - (3 if pair else 2)
    if room < 1 + pair:
        raise DataError(
            f"max_length {max_length} has no room for text beside the special tokens; give at least {4 + pair}"
        )
    firsts = tokenizer.encode_batch([example.first for example in examples])
    seconds = tokenizer.encode_batch([example.second or "" for example in examples]) if pair else [None] * len(examples)
    features, cut = [], 0
    for index, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
        keep = longest_first(len(a.ids), len(b.ids) if b else 0, room)
        cut += keep != (len(a.ids), len(b.ids) if b else 0)
        feature = assemble(tokenizer, a.ids[: keep[0]], b.ids[: keep[1]] if b else None)
        features.append(feature if targets is None else replace(feature, labels={"labels": targets[index]}))
    return PairFeatures(features, cut)
