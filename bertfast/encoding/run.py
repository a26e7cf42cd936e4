"""Files of texts to shards of embeddings: read, tokenized and written beside the model's work, a shard at a time.

A shard is a window over the input: its texts are sorted by length, put through the model in batches of like length, and written in
the input's order. Memory is that of a few windows, however long the input is.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertfast.data.lines import BadLine
from bertfast.encoding.encoder import DTYPES, Encoder
from bertfast.encoding.readers import Id, Input
from bertfast.encoding.shards import FACTS, FINISHED, FORMATS, OutputError, Shards
from bertfast.encoding.tokens import Tokenized
from bertfast.tasks.lines import SHOWN, DataError

SHARD_ROWS = 50_000
_MOST_CHARACTERS = 1 << 27  # of a window: one of whole books ends earlier
_MOST_NAMED = 1000  # bad lines of a window that are written down one by one


@dataclass
class Bad:
    """Lines that were left out: how many for each reason, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def add(self, line: BadLine) -> None:
        """Count a line under its reason, and keep its place while there is room."""
        self.counts[line.reason] += 1
        if len(self.named) < _MOST_NAMED:
            self.named.append(described(line))

    def summary(self) -> str:
        """One line of counts and the first few places, for an error; empty where nothing was bad."""
        if not self.counts:
            return ""
        shown = self.named[:SHOWN]
        more = self.counts.total() - len(shown)
        return f"left out: {self._counted()}; {'; '.join(shown)}{f'; and {more:,} more' if more else ''}"

    def listing(self, out: Path) -> str:
        """A line of counts, which says where in the folder of a finished run all places are, and a line for each of the first."""
        total, kept = self.counts.total(), len(self.named)
        which = "all" if kept == total else f"the first {kept:,}"
        shown = self.named[:SHOWN]
        more = [f"and {total - len(shown):,} more"] if total > len(shown) else []
        head = f"left out: {self._counted()}; {which} are in {out / FACTS / FINISHED}.json:"
        return "\n  ".join([head, *shown, *more])

    def _counted(self) -> str:
        return ", ".join(f"{count:,} with {reason}" for reason, count in self.counts.most_common())


def described(line: BadLine) -> str:
    """A bad line's place, and what is wrong with it: "corpus.jsonl:3: malformed JSON: ..."."""
    return f"{line.where}: {line.reason}{': ' + line.detail if line.detail else ''}"


@dataclass
class Window:
    """The texts of one shard, and how far into the input (0 to 1) it begins and ends.

    complete: what is known of the shard where it is there already.
    tokenized: the texts where it is not.
    """

    number: int
    begin: float
    end: float = 1.0
    ids: list[Id] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    bad: Bad = field(default_factory=Bad)
    complete: dict[str, Any] | None = None
    tokenized: Tokenized | None = None

    def digest(self) -> str:
        """Of ids and texts."""
        digest = hashlib.sha256()
        for each, text in zip(self.ids, self.texts, strict=True):
            digest.update(f"{each!r}\0{text}\0".encode())
        return digest.hexdigest()


@dataclass
class Status:
    """How far a run is. Rates are of what this process encoded.

    fraction: of the input, 0 to 1. texts, tokens: encoded by this process. resumed: texts in shards that were there already.
    damaged: numbers of shards that were complete once, were missing or did not match their checksums, and were made again.
    """

    fraction: float = 0.0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    resumed: int = 0
    shards: int = 0
    resumed_shards: int = 0
    seconds: float = 0.0
    bad: Bad = field(default_factory=Bad)
    damaged: list[int] = field(default_factory=list)


def windows(texts: Input, rows: int, strict: bool = False) -> Iterator[Window]:
    """The input in windows of `rows` texts. DataError where `strict` and a line is bad. Bad lines at the end may have a window
    without texts."""
    window = Window(0, 0.0)
    characters = 0
    for item in texts:
        if isinstance(item, BadLine):
            if strict:
                raise DataError(f"{described(item)}. Fix the line, or leave --strict out to leave such lines out")
            window.bad.add(item)
            continue
        window.ids.append(item.id)
        window.texts.append(item.text)
        characters += len(item.text)
        if len(window.texts) == rows or characters >= _MOST_CHARACTERS:
            window.end = texts.progress.done / max(1, texts.progress.total)
            yield window
            window, characters = Window(window.number + 1, window.end), 0
    if window.texts or window.bad.counts:
        yield window


def encode_files(
    encoder: Encoder,
    texts: Input,
    out: Path,
    *,
    form: str = "parquet",
    dtype: str = "float32",
    keep_text: bool = False,
    shard_rows: int = SHARD_ROWS,
    resume: bool = False,
    strict: bool = False,
    report: Callable[[Status], None] | None = None,
) -> Status:
    """Embeddings of all texts as shards in the folder `out`, in the input's order.

    Args:
        form: "parquet" (columns id, text where kept, embedding), "npy" (an array and an array of ids) or "safetensors".
        dtype: "float32" or "float16", of the embeddings on the disk.
        keep_text: whether Parquet has the texts too.
        shard_rows: texts of a shard; one of very long texts has fewer.
        resume: go on with what is in `out`; shards that are complete are checked and kept.
        strict: stop at the first line that cannot be encoded, rather than leave it out.
        report: told after each batch how far the run is.

    Returns:
        Counts of the whole run.

    Raises:
        DataError: the input cannot be read, holds no text, or (`strict`) a bad line.
        OutputError: `out` holds something else, or cannot be written.
        ImportError: what writes `form`, or reads the input, is not installed.
    """
    if form not in FORMATS or dtype not in DTYPES or shard_rows < 1:
        raise OutputError(
            f"format {form!r}, dtype {dtype!r}, shard_rows {shard_rows}: give one of {', '.join(FORMATS)}, one of "
            f"{', '.join(DTYPES)}, and 1 or more"
        )
    if keep_text and form != "parquet":
        raise OutputError(f"{form} files hold no texts: leave them out, or choose parquet")
    shards = Shards(out, _settings(encoder, texts, form, dtype, keep_text, shard_rows), form, resume=resume)
    status, begun = Status(), time.monotonic()

    def tell(fraction: float, count: int = 0, tokens: int = 0) -> None:
        status.fraction, status.seconds = fraction, time.monotonic() - begun
        status.texts += count
        status.tokens += tokens
        if report is not None:
            report(status)

    def prepared() -> Iterator[Window]:
        for window in windows(texts, shard_rows, strict):
            window.complete = shards.facts(window.number, window.digest()) if window.texts else None
            if window.texts and window.complete is None:
                window.tokenized = encoder.tokenize(window.texts)
            yield window

    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        pending: Future[None] | None = None
        for window in _ahead(prepared(), reading):
            status.bad.counts.update(window.bad.counts)
            status.bad.named.extend(window.bad.named[: _MOST_NAMED - len(status.bad.named)])
            if window.complete is not None:
                _count_complete(status, window.complete)
                tell(window.end)
            if window.tokenized is None:
                continue
            embeddings = _encode(encoder, window, dtype, tell)
            if pending is not None:
                pending.result()
            facts = _facts(window)
            kept = window.texts if keep_text else None
            pending = writing.submit(shards.write, window.number, window.ids, kept, embeddings, facts)
            status.shards += 1
            status.truncated += window.tokenized.truncated
        if pending is not None:
            pending.result()
    if not status.shards:
        names = ", ".join(map(str, texts.paths))
        raise DataError(f"there is no text to encode in {names}; {status.bad.summary() or 'nothing is in it'}")
    status.damaged = shards.damaged
    shards.finish({**asdict(status), "bad": {"counts": status.bad.counts, "named": status.bad.named}})
    tell(1.0)
    return status


def _ahead(made: Iterator[Window], pool: ThreadPoolExecutor) -> Iterator[Window]:
    """The same windows, each made while the one before is worked on."""
    pending = pool.submit(next, made, None)
    while (window := pending.result()) is not None:
        pending = pool.submit(next, made, None)
        yield window


def _encode(encoder: Encoder, window: Window, dtype: str, tell: Callable[[float, int, int], None]) -> Any:
    assert window.tokenized is not None
    total, done = int(window.tokenized.lengths.sum()), 0

    def batch(count: int, tokens: int) -> None:
        nonlocal done
        done += tokens
        tell(window.begin + (window.end - window.begin) * done / total, count, tokens)

    return encoder.encode_tokens(window.tokenized, dtype, batch)


def _count_complete(status: Status, facts: dict[str, Any]) -> None:
    status.shards += 1
    status.resumed_shards += 1
    status.resumed += facts["rows"]
    status.truncated += facts["truncated"]


def _facts(window: Window) -> dict[str, Any]:
    """What is written down of a shard."""
    assert window.tokenized is not None
    return {
        "rows": len(window.ids),
        "first_id": window.ids[0],
        "last_id": window.ids[-1],
        "tokens": int(window.tokenized.lengths.sum()),
        "truncated": window.tokenized.truncated,
        "bad": {"counts": window.bad.counts, "named": window.bad.named},
        "digest": window.digest(),
    }


def _settings(
    encoder: Encoder, texts: Input, form: str, dtype: str, keep_text: bool, shard_rows: int
) -> dict[str, Any]:
    """What must be equal for a run to be gone on with. Batch sizes and threads need not be."""
    recipe = encoder.recipe
    # What the modules are stands in the checkpoint's files; which of them are used is the caller's too.
    after = {"modules": [type(module).__name__ for module in recipe.modules]} if recipe.modules else {}
    shortened = {} if recipe.truncate_dim is None else {"truncate_dim": recipe.truncate_dim}
    return {
        "version": 1,
        "model": encoder.fingerprint(),
        "pooling": list(recipe.pooling),
        "normalize": recipe.normalize,
        **after,
        **shortened,
        "max_length": encoder.tokenizer.max_length,
        "prompt": encoder.prompt,
        "precision": encoder.precision,
        "device": encoder.device.type,
        "dimension": encoder.dimension,
        "input": texts.describe(),
        "format": form,
        "dtype": dtype,
        "keep_text": keep_text,
        "shard_rows": shard_rows,
    }
