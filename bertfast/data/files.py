"""Files that appear whole or not at all, and messages about what is missing or full."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from bertfast._extras import install


def missing_extra(error: ImportError, extra: str, purpose: str) -> ImportError:
    """An ImportError that names the extra which brings the module."""
    return ImportError(f"{purpose} needs {error.name}, which is not installed: {install(extra)}")


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes beside `path`, forces it to the disk, and renames: `path` never holds half of it. OSError when the disk is full."""
    beside = path.with_name(path.name + ".partial")
    try:
        with beside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
