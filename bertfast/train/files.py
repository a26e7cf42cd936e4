"""Folders that appear whole or not at all: temporary folder beside the target, files, fsync, manifest last, rename, fsync.

Every step that touches the disk goes through `Files`, so that a test can fail or kill the process at each of them.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bertfast.train.errors import CheckpointError, DiskFullError

TEMPORARY = ".tmp-"
MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Files:
    """The steps on the disk, one method each."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True)

    def write_tensors(self, path: Path, tensors: dict[str, Tensor]) -> None:
        # transformers refuses safetensors files that do not name their framework.
        save_file(tensors, path, metadata={"format": "pt"})

    def write_text(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")

    def sync(self, path: Path) -> None:
        """fsync a file or a folder."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove_folder(self, path: Path) -> None:
        shutil.rmtree(path)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing says that the disk, or the quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, SafetensorError) and any(f"os error {number}" in str(error) for number in _FULL)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the disk into DiskFullError or CheckpointError that say what was being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{what}: no space left on the disk; nothing half-written was left behind. Free some space "
                "and resume from the last complete checkpoint"
            ) from error
        raise CheckpointError(f"{what}: cannot be written ({error})") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None], facts: dict[str, Any], files: Files) -> None:
    """Make the folder `target` with what `fill` writes into the folder it is given, and a manifest of it.

    A reader sees the old `target`, or none, or the whole new one. On an error the temporary folder is removed.
    Raises DiskFullError or CheckpointError.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    with explained(str(target)):
        try:
            if temporary.exists():
                files.remove_folder(temporary)
            files.make_folder(temporary)
            fill(temporary)
            written = sorted(path for path in temporary.rglob("*") if path.is_file())
            for path in written:
                files.sync(path)
            for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
                files.sync(folder)
            listed = {
                str(path.relative_to(temporary)): {"sha256": sha256(path), "bytes": path.stat().st_size}
                for path in written
            }
            files.write_text(temporary / MANIFEST, json.dumps({**facts, "files": listed}, indent=1) + "\n")
            files.sync(temporary / MANIFEST)
            files.sync(temporary)
            replace_folder(temporary, target, files)
            files.sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def replace_folder(new: Path, target: Path, files: Files) -> None:
    """Put `new` in the place of `target`. Linux cannot swap folders portably, so an old one steps aside first."""
    aside = target.with_name(f"{TEMPORARY}old-{target.name}")
    if aside.exists():
        files.remove_folder(aside)
    if target.exists():
        files.rename(target, aside)
    files.rename(new, target)
    if aside.exists():
        files.remove_folder(aside)


def check_folder(folder: Path) -> str | None:
    """Why a folder is not what its manifest says, or None: files absent, of another size, of another checksum."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, wanted in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {wanted['bytes']}"
        if sha256(path) != wanted["sha256"]:
            return f"{name} does not have the checksum of the manifest: it was changed or damaged"
    return None
