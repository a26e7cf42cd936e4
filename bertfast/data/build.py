"""Builds a corpus: documents to pieces in worker processes, to Arrow files, and resumes where it was stopped.

Everything happens in `OUT.building`, one shard (a fixed number of characters of the source) at a time: its files are written into a
temporary folder, forced to the disk, and the folder is renamed, so that a shard is whole or absent whatever kills the build. A
shard's record says how many items of the source it covers; a build that goes on reads past those and makes the rest. At the end
the Arrow files get their names, and the folder becomes OUT. The bytes do not depend on workers or on where it was stopped.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data import arrow
from bertfast.data.build_options import BuildError, Options
from bertfast.data.build_records import lacking, manifest_of
from bertfast.data.encode import SIDES, Encoded, Work, encode
from bertfast.data.files import is_full, sync_folder, write_whole
from bertfast.data.lines import BadLine, Document
from bertfast.data.remarks import MARKERS_KEPT
from bertfast.data.sources import Source
from bertfast.data.tokenizer import Tokenizer
from bertfast.data.workers import Workers

DIGESTS = "digests.bin"  # of a shard: 8 bytes a document, to count copies
TASK_CHARACTERS = 1 << 18  # for a worker at a time: some tenths of a second


Report = Callable[[dict[str, int]], None]


def build(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    options: Options,
    *,
    workers: int = 1,
    report: Report = lambda totals: None,
) -> dict[str, Any]:
    """Builds the corpus in `out`, or goes on with it; returns its manifest (of `out/train` with a hold-out).

    `report` is called with totals (documents, sentences, tokens, skipped) after each batch. A finished corpus is left as it is.

    Raises:
        BuildError: `out` holds another corpus or something else, a bad line that is to be refused, no document left on a
            side, another build at work, or a full disk (what is done stays, and the same command goes on).
    """
    plan = {
        "format": "bertfast-build",
        "version": 1,
        "sources": source.describe(),
        "tokenizer": tokenizer.sha256,
        "options": asdict(options),
    }
    if _finished(out, plan):
        shutil.rmtree(out / "shards", ignore_errors=True)
        return json.loads((sides(out, options)["train"] / "manifest.json").read_text("utf-8"))
    work = out.with_name(out.name + ".building")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work):
            if _kept(work):
                _compare(work, plan)
            arrow.write_json(work / "build.json", plan)
            try:
                records = _shards(source, tokenizer, work, options, workers, report)
            except ValueError:
                if not _kept(work):  # nothing that the corrected command could go on with
                    shutil.rmtree(work)
                raise
            if problem := lacking(work, records, options):
                shutil.rmtree(work)
                raise BuildError(problem)
            manifest = _assemble(work, records, tokenizer, plan)
            os.replace(work, out)
            sync_folder(out.parent)
            shutil.rmtree(out / "shards")
            return manifest
    except OSError as error:
        if is_full(error):
            raise BuildError(
                f"the disk is full; what is done stays in {work}: free some space and run the same command again, it goes on there"
            ) from error
        raise


def _kept(work: Path) -> bool:
    """Whether a build that was stopped left anything finished."""
    return any(work.glob("shards/*/record.json"))


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """One build at a time in a folder; the system forgets the lock of a build that is killed."""
    handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BuildError(f"another build is at work in {work}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        os.close(handle)


def finished(out: Path) -> bool:
    """Whether `out` holds a corpus that was built to the end."""
    return (out / "build.json").is_file()


def _finished(out: Path, plan: dict[str, Any]) -> bool:
    if finished(out):
        _compare(out, plan)
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BuildError(
            f"{out} exists and is not a corpus of `bertfast data build`; name a folder that is empty or not there yet"
        )
    return False


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list):
        return {k: v for at, inner in enumerate(value) for k, v in _flat(inner, f"{name}[{at}]").items()}
    return {name: value}


def _compare(folder: Path, plan: dict[str, Any]) -> None:
    """BuildError where the corpus in `folder` was begun otherwise."""
    there, now = _flat(json.loads((folder / "build.json").read_text("utf-8"))), _flat(json.loads(json.dumps(plan)))
    if differing := [name for name in {**there, **now} if there.get(name) != now.get(name)]:
        what = "; ".join(f"{name} is {there.get(name)!r} there and {now.get(name)!r} now" for name in differing[:6])
        raise BuildError(
            f"{folder} was begun with something else: {what}. Build into another folder, or remove that one"
        )


def _batches(source: Source, skip: int, options: Options) -> Iterator[Work]:
    """The stream in pieces for workers: at document bounds, by characters alone, and never across two shards."""
    work = Work([], options.splitter, options.holdout)
    shard = 0
    for item in islice(iter(source), skip, None):
        work.items.append(item)
        if isinstance(item, BadLine) and options.refuse_bad_lines:
            raise _refused(item)
        work.size += sum(map(len, item.lines)) if isinstance(item, Document) else 1
        if work.size >= min(TASK_CHARACTERS, options.shard_characters - shard):
            shard = shard + work.size if shard + work.size < options.shard_characters else 0
            yield work
            work = Work([], options.splitter, options.holdout)
    if work.items:
        yield work


def _refused(bad: BadLine) -> BuildError:
    return BuildError(f"{bad.where}: {bad.reason} ({bad.detail}); fix it, or pass bad lines by with --bad-lines skip")


def _shards(
    source: Source, tokenizer: Tokenizer, work: Path, options: Options, workers: int, report: Report
) -> list[dict[str, Any]]:
    """Writes the shards that are not there yet; returns the records of all."""
    (folder := work / "shards").mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    while (path := folder / f"{len(records):05d}" / "record.json").is_file():
        records.append(json.loads(path.read_text("utf-8")))
    totals = _totals(Counter(), *records)
    parts: list[Encoded] = []
    with Workers(workers, tokenizer.files, tokenizer) as pool:
        for part in pool.map(encode, _batches(source, sum(record["items"] for record in records), options)):
            if part.skipped and options.refuse_bad_lines:
                raise _refused(part.skipped[0])
            parts.append(part)
            report(dict(_totals(totals, _record([part]))))
            if sum(part.size for part in parts) >= options.shard_characters:
                records.append(_write_shard(folder / f"{len(records):05d}", parts, tokenizer))
                parts = []
        if parts:
            records.append(_write_shard(folder / f"{len(records):05d}", parts, tokenizer))
    return records


def _record(parts: list[Encoded]) -> dict[str, Any]:
    counts = {side: Counter[str]() for side in SIDES}
    notes: Counter[str] = Counter()
    markers: Counter[str] = Counter()
    for part in parts:
        for name, count in part.notes.items():
            (markers if name.startswith("marker ") else notes)[name] += count
        for side in SIDES:
            counts[side].update(part.rows[side].counts())
    kept = sorted(markers, key=lambda name: (-markers[name], name))[:MARKERS_KEPT]
    notes.update({name: markers[name] for name in kept})
    skipped = Counter(bad.reason for part in parts for bad in part.skipped)
    return {
        "items": sum(part.items for part in parts),
        **counts,
        "skipped": dict(sorted(skipped.items())),
        "notes": dict(notes),
    }


def _totals(totals: Counter[str], *records: dict[str, Any]) -> Counter[str]:
    """`totals` with these records added."""
    for record in records:
        for side in SIDES:
            totals.update(record[side])
        totals["skipped"] += sum(record["skipped"].values())
    return totals


def _write_shard(target: Path, parts: list[Encoded], tokenizer: Tokenizer) -> dict[str, Any]:
    """The shard's folder, whole or not at all."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        dtype = arrow.dtype_for(tokenizer.vocab_size)
        for side in SIDES:
            rows = arrow.Rows.joined([part.rows[side] for part in parts], dtype)
            if len(rows.tokens):
                arrow.write_rows(partial / f"{side}.arrow", rows, dtype)
        lines = [json.dumps(asdict(bad), ensure_ascii=True) + "\n" for part in parts for bad in part.skipped]
        write_whole(partial / "skipped.jsonl", [line.encode() for line in lines])
        write_whole(partial / DIGESTS, [part.digests.tobytes() for part in parts])
        record = _record(parts)
        arrow.write_json(partial / "record.json", record)
        os.replace(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return record


def _repeated(work: Path, shards: int) -> int:
    """How many documents of the shards are copies of another one."""
    files = [path for index in range(shards) if (path := work / "shards" / f"{index:05d}" / DIGESTS).is_file()]
    digests = np.concatenate([np.zeros(0, np.uint64), *(np.fromfile(path, np.uint64) for path in files)])
    return len(digests) - len(np.unique(digests))


def sides(folder: Path, options: Options) -> dict[str, Path]:
    """The corpora in a build's folder: train and eval, or with no hold-out itself."""
    return {side: folder / side for side in SIDES} if options.holdout else {"train": folder}


def _assemble(work: Path, records: list[dict[str, Any]], tokenizer: Tokenizer, plan: dict[str, Any]) -> dict[str, Any]:
    """Names the Arrow files, writes what stands beside them. Each step may have been done by a build that was stopped here."""
    options = Options(**plan["options"])
    manifests = {}
    repeated = _repeated(work, len(records))
    for side, folder in sides(work, options).items():
        folder.mkdir(exist_ok=True)
        filled = [index for index, record in enumerate(records) if record[side]["documents"]]
        for at, index in enumerate(filled):
            target = folder / arrow.DATA_NAME.format(at, len(filled))
            if not target.exists():
                os.replace(work / "shards" / f"{index:05d}" / f"{side}.arrow", target)
        fingerprint = tokenizer.sha256[:8] + plan["sources"][0]["sha256"][:8]
        arrow.write_dataset_files(folder, len(filled), arrow.dtype_for(tokenizer.vocab_size), fingerprint)
        tokenizer.save(folder / "tokenizer")
        manifests[side] = manifest_of(records, side if options.holdout else None, tokenizer, plan, repeated)
        arrow.write_json(folder / "manifest.json", manifests[side])
    shards = (work / "shards" / f"{index:05d}" / "skipped.jsonl" for index in range(len(records)))
    write_whole(work / "skipped.jsonl", (path.read_bytes() for path in shards))
    return manifests["train"]
