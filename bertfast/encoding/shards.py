"""A folder of embeddings that grows shard by shard; each is whole or absent, and knows what it was made of.

    OUT/shard-00000.parquet          the embeddings, in the input's order (or .npy and .ids.npy, or .safetensors)
    OUT/_bertfast/settings.json      what the run was begun with
    OUT/_bertfast/shard-00000.json   written last: rows, counts, the digest of the texts, sizes and checksums of the files
    OUT/_bertfast/finished.json      written when nothing is left to do

Files are written beside their place, forced to the disk and renamed. Readers of Parquet folders pass over names like `_bertfast`.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertfast.data.files import is_full, missing_extra, sync_folder, write_whole
from bertfast.data.sources import hash_file

FACTS = "_bertfast"
FINISHED = "finished"
PARTIAL = ".partial"


class OutputError(ValueError):
    """The folder of embeddings cannot be written, or is another run's; the message says what to do."""


def write_parquet(path: Path, ids: Sequence[Any], texts: Sequence[str] | None, embeddings: NDArray[Any]) -> None:
    """Columns id (int64 or string), text where given, embedding (lists of fixed size E).

    ids, texts: [N]. embeddings: [N, E], float32 or float16.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(error, "encode", "writing Parquet") from None
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings.reshape(-1)), embeddings.shape[1])
    columns = {
        "id": pyarrow.array(ids),
        **({} if texts is None else {"text": pyarrow.array(texts)}),
        "embedding": vectors,
    }
    # Numbers without a pattern: compressing them takes time and no bytes.
    compression = {name: "none" if name == "embedding" else "zstd" for name in columns}
    parquet.write_table(pyarrow.table(columns), path, compression=compression, use_dictionary=False)


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """One array as it is: embeddings [N, E], float32 or float16, or ids [N], int64 or text."""
    with path.open("wb") as file:  # np.save would put .npy behind another ending
        np.save(file, array, allow_pickle=False)


def write_safetensors(path: Path, ids: Sequence[Any], embeddings: NDArray[Any]) -> None:
    """`embeddings` [N, E]; `ids` [N] int64, or for texts as Arrow keeps them: `id_bytes`, UTF-8, and `id_offsets` [N + 1] int64.

    Raises:
        ImportError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise missing_extra(error, "encode", "writing safetensors") from None
    tensors = {"embeddings": embeddings}
    if isinstance(ids[0], int):
        tensors["ids"] = np.asarray(ids, np.int64)
    else:
        encoded = [each.encode() for each in ids]
        tensors["id_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        tensors["id_offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    save_file(tensors, path)


FORMATS = ("parquet", "npy", "safetensors")
Writer = Callable[[Path], None]


def _files(
    form: str, stem: str, ids: Sequence[Any], texts: Sequence[str] | None, embeddings: NDArray[Any]
) -> dict[str, Writer]:
    """Of one shard: name of each file and what writes it."""
    if form == "parquet":
        return {f"{stem}.parquet": lambda path: write_parquet(path, ids, texts, embeddings)}
    if form == "safetensors":
        return {f"{stem}.safetensors": lambda path: write_safetensors(path, ids, embeddings)}
    return {
        f"{stem}.ids.npy": lambda path: write_npy(path, np.asarray(ids)),
        f"{stem}.npy": lambda path: write_npy(path, embeddings),
    }


class Shards:
    """The folder of one run.

    Args:
        folder: made where it is not there.
        settings: plain JSON; a run is gone on with only where all of it is equal.
        form: one of FORMATS.
        resume: whether a run that is in the folder already is gone on with, finished or not.

    Attributes:
        damaged: numbers of the shards that `facts` was asked for and whose files are missing or not what was written.

    Raises:
        OutputError: the folder holds something already and `resume` was not given; it is of other settings or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], form: str, *, resume: bool = False) -> None:
        self.folder, self.form, self._facts = folder, form, folder / FACTS
        self.damaged: list[int] = []
        try:
            begun = self._begun(resume)
            if begun is not None:
                self._compare(begun, json.loads(json.dumps(settings)))
            self._facts.mkdir(parents=True, exist_ok=True)
            for left in [*folder.glob(f"*{PARTIAL}"), *self._facts.glob(f"*{PARTIAL}")]:
                left.unlink()
            (self._facts / f"{FINISHED}.json").unlink(missing_ok=True)
            if begun is None:
                self._write_json("settings", settings)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written ({error.strerror or error}): choose another folder"
            ) from None

    def _begun(self, resume: bool) -> dict[str, Any] | None:
        """The settings of the run in the folder, None where it has made nothing yet."""
        there = self.folder.iterdir() if self.folder.exists() else iter(())
        if all(path == self._facts or path.name.endswith(PARTIAL) for path in there):
            return None
        begun = self._read_json("settings")
        if begun is None:
            raise OutputError(f"{self.folder} holds other files: name a new folder")
        if not resume:
            state = "finished embeddings" if self.is_finished() else "embeddings that are not finished"
            raise OutputError(f"{self.folder} holds {state} already: go on with --resume, or name a new folder")
        return begun

    def _compare(self, begun: dict[str, Any], now: dict[str, Any]) -> None:
        if begun.get("model") != now.get("model"):  # first, as other settings follow from it
            raise OutputError(
                f"{self.folder} was begun with another checkpoint (its files differ): give that one, or name a new folder"
            )
        before, after = _flat(begun), _flat(now)
        # The dimension last, as it follows from the pooling.
        for name in sorted(before.keys() | after.keys(), key=lambda name: (name == "dimension", name)):
            if before.get(name) != after.get(name):
                raise OutputError(
                    f"{self.folder} was begun with {name} = {_plain(before.get(name))[:200]}, and now it is "
                    f"{_plain(after.get(name))[:200]}: give what it was begun with, or name a new folder"
                )

    def is_finished(self) -> bool:
        """Whether a run came to its end here, and none was begun after it."""
        return (self._facts / f"{FINISHED}.json").is_file()

    def facts(self, number: int, digest: str) -> dict[str, Any] | None:
        """What is known of a shard that is complete; None where it is absent, or its files are not what was written (`damaged`).

        digest: of the texts that it should be made of.

        Raises:
            OutputError: it was made of other texts.
        """
        facts = self._read_json(self._stem(number))
        if facts is None:
            return None
        if not all(self._is_whole(name, written) for name, written in facts["files"].items()):
            self.damaged.append(number)
            return None
        if facts["digest"] != digest:
            raise OutputError(
                f"{self.folder}: shard {number} was made of other texts than the input now has there ({facts['rows']} from id "
                f"{facts['first_id']!r} on): the files were changed; name a new folder"
            )
        return facts

    def _is_whole(self, name: str, written: dict[str, Any]) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == written["bytes"] and hash_file(path) == written["sha256"]

    def write(
        self,
        number: int,
        ids: Sequence[Any],
        texts: Sequence[str] | None,
        embeddings: NDArray[Any],
        facts: dict[str, Any],
    ) -> None:
        """One shard with what is to be known of it. OutputError where it cannot be written; nothing half-written is left then."""
        listed: dict[str, Any] = {}
        partial: Path | None = None
        try:
            for name, write in _files(self.form, self._stem(number), ids, texts, embeddings).items():
                path = self.folder / name
                partial = path.with_name(path.name + PARTIAL)
                write(partial)
                _sync(partial)
                listed[name] = {"bytes": partial.stat().st_size, "sha256": hash_file(partial)}
                os.replace(partial, path)
            sync_folder(self.folder)
            self._write_json(self._stem(number), {**facts, "files": listed})
        except OSError as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            reason = (
                "no space left on the disk" if is_full(error) else f"it cannot be written ({error.strerror or error})"
            )
            raise OutputError(
                f"{self.folder}, shard {number}: {reason}; the shards before it are complete. Fix that, and go on with --resume"
            ) from None

    def finish(self, totals: dict[str, Any]) -> None:
        """Mark the folder as finished. No shard of a longer input is left in it: settings name the input's size."""
        self._write_json(FINISHED, totals)

    @staticmethod
    def _stem(number: int) -> str:
        return f"shard-{number:05d}"

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self._facts / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise OutputError(f"{path} is damaged ({error}): remove it, and the shard is made again") from None

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self._facts / f"{name}.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those inside others laid beside them: "input field"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name} {inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _plain(value: Any) -> str:
    """A setting as a reader would say it: mean, cls; a.txt (120 bytes, text)."""
    if isinstance(value, dict):
        return f"{value['name']} ({value['bytes']:,} bytes, {value['format']})"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) and value else json.dumps(value)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
