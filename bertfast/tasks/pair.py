"""Classification and regression of single sentences and of sentence pairs: files to examples, examples to features."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.tasks.columns import ABSENT, Columns, Row, read_rows
from bertfast.tasks.features import Feature, assemble, longest_first
from bertfast.tasks.lines import BadLines, DataError, cell_problem, nearest, text_fault

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

FIELDS = ("sentence1", "sentence2", "label")
_MANY = 10  # integers that are classes; where there are more, they may be scores


@dataclass(frozen=True)
class PairExample:
    """One line: a sentence or two, the label as written (None where the file has none), and its place."""

    first: str
    second: str | None
    label: str | None
    where: str


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


def read_pairs(
    path: Path,
    bad: BadLines,
    *,
    fields: Sequence[str] = FIELDS,
    given: bool | None = None,
    sentences: int | None = None,
    labelled: bool = True,
) -> list[PairExample]:
    """The examples of a file: TSV (.tsv, .txt), JSONL (.jsonl, .json) or CSV with a header (.csv), each also in gzip.

    Args:
        bad: where bad lines go: no UTF-8, no JSON, a missing or empty sentence, a missing label, values of other types,
            a wrong number of columns, a quote that is not closed.
        fields: names of first sentence, second sentence and label, as `field_names` takes them.
        given: whether the user named them, so that each has to be there; None: where they are not the usual ones. Without the usual
            second a file has single sentences.
        sentences: 1 or 2; None tells it from the file (TSV without a header: one less than there are columns).
        labelled: whether labels are read, and a line without one is bad.

    Raises:
        DataError: the file is of another kind, cannot be read, is empty, lacks a column that was named, mixes single sentences with
            pairs, or has a bad line that is not to be skipped.
    """
    first, second, label = field_names(fields, sentences, labelled)
    given = tuple(fields) != FIELDS if given is None else given
    columns = Columns(first, second, label, sentences, given, labelled)
    examples = []
    for row in read_rows(path, columns, bad):
        if wrong := _row_problem(row, columns):
            bad.report(row.where, *wrong)
            continue
        one, two, known = row.cells
        two = None if two is ABSENT or sentences == 1 else two
        text = None if not labelled else known if isinstance(known, str) else json.dumps(known)
        examples.append(PairExample(one, two, text and text.strip(), row.where))
    if not examples:
        why = f"; {bad.summary()}" if bad else ""
        if bad.header and not bad:
            raise DataError(
                f"{path}: line {bad.header.rpartition(':')[2]} names the columns, and there is nothing after it"
            )
        raise DataError(f"{path}: no usable line{why}")
    pairs = {example.second is not None for example in examples}
    if len(pairs) > 1:
        odd = next(e for e in examples if (e.second is None) == (examples[0].second is not None))
        raise DataError(f"{odd.where}: single sentences and pairs in one file; set --sentences to 1 or 2")
    return examples


def _row_problem(row: Row, columns: Columns) -> tuple[str, str] | None:
    """Why a row is no example, as `BadLines.report` takes it."""
    first, second, label = row.cells
    if second is None and columns.second not in columns.demanded:  # how tables of JSON write that there is none
        row.cells[1] = second = ABSENT
    if not isinstance(first, str) or not first.strip():
        return f"no text in {columns.first}", _is(first, columns.first)
    read = columns.second is not None and columns.sentences != 1
    due = read and (second is not ABSENT or columns.second in columns.demanded)
    if due and (not isinstance(second, str) or not second.strip()):
        return f"no text in {columns.second}", _is(second, columns.second)
    if wrong := text_fault(first, second if read and isinstance(second, str) else None):
        return wrong
    if not columns.labelled:
        return None
    if isinstance(label, str):
        return text_fault(label) if label.strip() else ("no label", _is(label, columns.label))
    is_number = isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label)
    return None if is_number else ("no label", _is(label, columns.label))


def _is(value: object, name: str | None) -> str:
    """What stands in the place of a cell."""
    item = {} if value is ABSENT else {name or "label": value}
    return cell_problem(item, name or "label")


def discover_labels(examples: Iterable[PairExample]) -> list[str]:
    """The labels that occur, sorted: as numbers where all are integers, else as text.

    Raises:
        DataError: two of them are one number in two spellings, such as 1 and 1.0.
    """
    first: dict[str, PairExample] = {}
    for example in examples:
        if example.label is not None:
            first.setdefault(example.label, example)
    numbers: dict[float, str] = {}
    for label, example in first.items():
        value = _number(label)
        if value is not None and (other := numbers.setdefault(value, label)) != label:
            raise DataError(
                f"{example.where}: the label {label!r} is the number {other!r} of {first[other].where} in another spelling, "
                "and would be a class of its own: write each number in one way"
            )
    try:
        return sorted(first, key=int)
    except ValueError:
        return sorted(first)


def label_notes(examples: Sequence[PairExample], has_header: bool) -> list[str]:
    """What makes one doubt that the labels which occur are the classes that are meant."""
    counts = Counter(example.label for example in examples if example.label is not None)
    notes = []
    numbers = [_number(label) for label in counts]
    if None not in numbers and (len(counts) > _MANY or any(not label.lstrip("+-").isdecimal() for label in counts)):
        values = [value for value in numbers if value is not None]
        notes.append(
            f"the labels are {len(counts)} different numbers from {min(values):g} to {max(values):g}, and each is a "
            "class of its own: where they are scores, give --regression"
        )
    if "-" in counts or ("-1" in counts and None in numbers):
        label = "-" if "-" in counts else "-1"
        notes.append(
            f"{counts[label]:,} lines have the label {label!r}, which stands for no label in SNLI (-) and in GLUE's test files "
            "(-1), and is a class of its own here: take those lines out where it is none"
        )
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in counts:
        alike[label.casefold()].append(label)
    if pairs := [" and ".join(sorted(labels)) for labels in alike.values() if len(labels) > 1]:
        notes.append(f"labels that differ by case alone are classes of their own: {', '.join(pairs)}")
    begin = examples[0]
    others = [count for label, count in counts.items() if label != begin.label]
    label = begin.label or ""
    if not has_header and begin.where.endswith(":1") and counts[label] == 1 and others and min(others) > 1:
        notes.append(
            f"{begin.where} may be a header: no other line has its label {label!r}; take it out, or name the "
            "columns with --fields"
        )
    return notes


def with_targets(
    examples: Sequence[PairExample], labels: Sequence[str] | None, bad: BadLines, spelling: Mapping[str, str] = {}
) -> tuple[list[PairExample], list[int | float]]:
    """The examples whose label can be trained on, and their targets: a class, or a number where `labels` is None.

    spelling: the name of a class by how the file has it; the examples then have that name.
    """
    kept: list[PairExample] = []
    targets: list[int | float] = []
    numbers = {label: index for index, label in enumerate(labels or ())}
    for example in examples:
        if example.label is not None and example.label in spelling:
            example = replace(example, label=spelling[example.label])
        target: int | float | None
        if labels is None:
            target = _number(example.label)
            why = "a label that is no finite number"
        else:
            target = numbers.get(example.label or "")
            why = f"a label that is none of {', '.join(labels)}"
        if target is None:
            bad.report(example.where, why, repr(example.label) + nearest(example.label or "", labels or ()))
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
