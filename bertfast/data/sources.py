"""Documents from files and data sets, as a stream that is the same each time it is read.

A stream yields `Document`s and `BadLine`s, in order. A bad line takes itself out, not its document, and is never passed over in
silence: `bertfast data build` counts and names it. Memory is bounded by one document (cut at `LONGEST_DOCUMENT`), but for
SQuAD-shaped JSON, which is read whole.
"""

import hashlib
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.data import encodings
from bertfast.data.files import missing_extra
from bertfast.data.lines import LINE_END, BadLine, Gather, Item, Progress, SourceError, fault, open_text, read_lines


@dataclass(frozen=True)
class Reading:
    """How files are read: the field of rows that is text, and the encoding, UTF-8 where it is None."""

    field: str = "text"
    encoding: str | None = None


def read_text(path: Path, progress: Progress, reading: Reading) -> Iterator[Item]:
    """A blank line ends a document; every other line is a sentence, or a paragraph that is still to be split."""
    gather = Gather()
    for item in read_lines(path, progress, reading.encoding):
        if isinstance(item, BadLine):
            yield item
        elif line := item[1].strip():
            yield from gather.add(f"{path}:{item[0]}", line)
        else:
            yield from gather.end()
    yield from gather.end()


WIKITEXT_HEADING = re.compile(r"= (.*) =")
WIKITEXT_JOIN = re.compile(r" @([-,.])@ ")
WIKITEXT_UNKNOWN = re.compile(r"<unk> ?")


def read_wikitext(path: Path, progress: Progress, reading: Reading) -> Iterator[Item]:
    """WikiText: " = Title = " begins a document, deeper headings are left out, and " @-@ " (also , and .) is undone to "-".

    <unk>, WikiText's own mark for a rare word, is left out: as pieces it would be the easiest thing in the text to predict.
    """
    gather = Gather()
    for item in read_lines(path, progress, reading.encoding):
        if isinstance(item, BadLine):
            yield item
            continue
        line = item[1].strip()
        if heading := WIKITEXT_HEADING.fullmatch(line):
            if not heading.group(1).startswith("= "):
                yield from gather.end()
            gather.at(f"{path}:{item[0]}").headings += 1
        elif line := WIKITEXT_UNKNOWN.sub("", line):
            yield from gather.add(f"{path}:{item[0]}", WIKITEXT_JOIN.sub(r"\1", line))
    yield from gather.end()


def rows(value: Any, where: str) -> Iterator[Item]:
    """A document from the field of a row: text (its lines) or a list of texts."""
    parts = value if isinstance(value, list) else [value]
    gather = Gather()
    for part in parts:
        if wrong := fault(part):
            yield BadLine(where, *wrong)
            continue
        for line in LINE_END.split(part):
            if line.strip():
                yield from gather.add(where, line.strip())
    if gather.document is None and all(isinstance(part, str) and not part.strip() for part in parts):
        yield BadLine(where, "empty document")
    yield from gather.end()


def read_jsonl(path: Path, progress: Progress, reading: Reading) -> Iterator[Item]:
    """One JSON object a line, the document in its `field`."""
    for item in read_lines(path, progress, reading.encoding):
        if isinstance(item, BadLine):
            yield item
            continue
        where = f"{path}:{item[0]}"
        if not item[1].strip():
            continue
        try:
            row = parse_row(item[1], reading.field)
        except (ValueError, RecursionError) as error:
            over_lines = item[1].strip() in ("{", "[")
            hint = "; the file seems to be one JSON over many lines, and an object a line is read" if over_lines else ""
            yield BadLine(where, "malformed JSON", f"{error or 'nested too deeply'}{hint}")
            continue
        if not isinstance(row, dict):
            hint = (
                ", and an object a line is read: convert it, as by jq -c '.[]'" if isinstance(row, list) and row else ""
            )
            yield BadLine(where, "wrong type", f"{type(row).__name__} instead of an object{hint}")
        elif reading.field not in row:
            names = ", ".join(list(row)[:8]) or "no fields"
            hint = (
                "; SQuAD's files are read with --format squad" if isinstance(row.get("data"), list) else "; see --field"
            )
            yield BadLine(where, "missing field", f"no {reading.field!r} among {names}{hint}")
        else:
            yield from rows(row[reading.field], where)


def parse_row(line: str, field: str) -> Any:
    """The JSON of a line. ValueError where it is none, or an object has the field twice, of which Python would keep one."""
    row = json.loads(line)
    key = json.dumps(field)
    if line.count(key) > 1:

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if sum(name == field for name, _ in pairs) > 1:
                raise ValueError(f"the field {field!r} stands twice")
            return dict(pairs)

        return json.loads(line, object_pairs_hook=once)
    return row


# A context of JSQuAD reads "TITLE [SEP] TEXT". The marker is no text, and the title stands before every paragraph of its article.
JSQUAD_TITLE = re.compile(r"[^\n]{0,200}? \[SEP\] ")


def _squad_paragraphs(article: Any, where: str) -> Iterator[tuple[str, str] | BadLine]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield BadLine(where, "missing field", "no list 'paragraphs'")
        return
    for number, paragraph in enumerate(paragraphs, 1):
        place = f"{where} paragraph {number}"
        if not isinstance(paragraph, dict) or "context" not in paragraph:
            yield BadLine(place, "missing field", "no 'context'")
        elif wrong := fault(paragraph["context"]):
            yield BadLine(place, *wrong)
        else:
            yield place, JSQUAD_TITLE.sub("", paragraph["context"], count=1)


def _read_squad(path: Path, progress: Progress, reading: Reading, paragraphs_apart: bool) -> Iterator[Item]:
    try:
        text, raw, encoding = open_text(path, reading.encoding)
        with raw:
            content = json.loads(text.read().decode("utf-8-sig" if encoding == "utf-8" else encoding))
        articles = content.get("data") if isinstance(content, dict) else None
        if not isinstance(articles, list):
            raise TypeError("there is none" if isinstance(content, dict) else f"it is {type(content).__name__}")
    except SourceError:
        raise
    except (ValueError, TypeError, RecursionError, EOFError, OSError, zlib.error) as error:
        hint = "; a document a line is --format jsonl" if "Extra data" in str(error) else ""
        raise SourceError(
            f"{path} is not SQuAD-shaped JSON, an object with a list 'data' of articles ({error or 'nested too deeply'}{hint})"
        ) from None
    for number, article in enumerate(articles, 1):
        gather = Gather()
        for item in _squad_paragraphs(article, f"{path}:article {number}"):
            if isinstance(item, BadLine):
                yield item
                continue
            for line in LINE_END.split(item[1]):
                if line.strip():
                    yield from gather.add(item[0], line.strip())
            if paragraphs_apart:
                yield from gather.end()
        yield from gather.end()
    progress.done += path.stat().st_size


def read_squad(path: Path, progress: Progress, reading: Reading) -> Iterator[Item]:
    """Contexts of SQuAD-shaped JSON, an article a document."""
    return _read_squad(path, progress, reading, paragraphs_apart=False)


def read_squad_paragraphs(path: Path, progress: Progress, reading: Reading) -> Iterator[Item]:
    """Contexts of SQuAD-shaped JSON, a paragraph a document."""
    return _read_squad(path, progress, reading, paragraphs_apart=True)


@dataclass(frozen=True)
class Format:
    read: Callable[[Path, Progress, Reading], Iterator[Item]]
    splitter: str  # what a line is unless --splitter says: "lines" sentences, "sentences" paragraphs to be split
    what: str


FORMATS = {
    "text": Format(read_text, "lines", "one sentence a line, a blank line between documents"),
    "paragraphs": Format(read_text, "sentences", "one paragraph a line, a blank line between documents"),
    "wikitext": Format(read_wikitext, "sentences", 'paragraphs; " = Title = " begins a document'),
    "squad": Format(read_squad, "sentences", "contexts of SQuAD-shaped JSON, an article a document"),
    "squad-paragraphs": Format(read_squad_paragraphs, "sentences", "the same, a paragraph a document"),
    "jsonl": Format(read_jsonl, "sentences", "one JSON object a line, the document in --field"),
}


PLAIN_TEXT = ("text", "paragraphs", "wikitext")


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileSource:
    """Files of one format."""

    def __init__(self, paths: list[Path], format: str, field: str = "text", encoding: str | None = None) -> None:
        if encoding is not None and not encodings.known(encoding):
            raise SourceError(
                f"--encoding {encoding}: Python knows no such encoding of text; utf-16, cp932, euc_jp and cp1252 are some"
            )
        for path in paths:
            if not path.is_file():
                if path.exists() and not path.is_dir():
                    raise SourceError(
                        f"{path} is not a regular file, and sources are read twice; copy it to a file first"
                    )
                what = "is a folder" if path.is_dir() else "does not exist"
                raise SourceError(f"{path} {what}; name text files, or a data set by --dataset")
            kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
            if kind in ("json", "jsonl") and format in PLAIN_TEXT:
                raise SourceError(
                    f"{path} is JSON by its name, and --format {format} would take its braces for sentences: give --format "
                    "jsonl for a document a line, squad for SQuAD's and JSQuAD's files, or rename it if it is plain text"
                )
        self.paths, self.format, self.reading = paths, format, Reading(field, encoding)
        self.splitter = FORMATS[format].splitter
        self.progress = Progress(sum(path.stat().st_size for path in paths))

    def describe(self) -> list[dict[str, Any]]:
        """Name, size, hash and format of each file: what a build is compared by."""
        how = {"format": self.format, **({"field": self.reading.field} if self.format == "jsonl" else {})}
        how |= {"encoding": self.reading.encoding} if self.reading.encoding is not None else {}
        files = ({"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)} for path in self.paths)
        return [{**file, **how} for file in files]

    def __iter__(self) -> Iterator[Item]:
        self.progress.done = 0
        for path in self.paths:
            count = 0
            for item in FORMATS[self.format].read(path, self.progress, self.reading):
                count += 1
                yield item
            if not count:
                warnings.warn(
                    f"{path} holds no text" + (": it is empty" if not path.stat().st_size else ""), stacklevel=2
                )


class DatasetSource:
    """A data set of `datasets`: a folder of `save_to_disk`, or whatever `load_dataset` takes; `paths` are its data_files."""

    splitter = "sentences"

    def __init__(self, name: str, config: str | None, split: str, field: str, paths: list[Path]) -> None:
        try:
            import datasets
        except ImportError as error:
            raise missing_extra(error, "data", "reading a data set") from None
        self.name, self.config, self.split, self.field = name, config, split, field
        found: Any = None
        bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()  # the commands have one of their own
        try:
            if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
                found = datasets.load_from_disk(name)
                found = found[split] if isinstance(found, datasets.DatasetDict) else found
            else:
                found = datasets.load_dataset(name, config, split=split, data_files=[str(p) for p in paths] or None)
        except KeyError as error:
            if found is None:
                raise SourceError(f"data set {name} cannot be loaded: {error!r}") from None
            raise SourceError(f"data set {name} has no split {split!r}, but {', '.join(found)}") from None
        except Exception as error:  # datasets raises many kinds, the network's included
            raise SourceError(f"data set {name} cannot be loaded: {error}") from None
        finally:
            if bars:
                datasets.enable_progress_bars()
        if field not in found.column_names:
            raise SourceError(
                f"data set {name} has no field {field!r}, but {', '.join(found.column_names)}; see --field"
            )
        self.rows = found.select_columns([field])
        self.progress = Progress(len(self.rows))

    def describe(self) -> list[dict[str, Any]]:
        """Name, rows and a hash of the field's contents."""
        content = hashlib.sha256()
        for batch in self.rows.iter(1000):
            content.update(json.dumps(batch[self.field], default=repr).encode())
        names = {"name": Path(self.name).name, "config": self.config, "split": self.split, "field": self.field}
        return [{**names, "rows": len(self.rows), "sha256": content.hexdigest()}]

    def __iter__(self) -> Iterator[Item]:
        self.progress.done = 0
        for batch in self.rows.iter(1000):
            for value in batch[self.field]:
                self.progress.done += 1
                yield from rows(value, f"{self.name}[{self.split}]:{self.progress.done}")


Source = FileSource | DatasetSource
