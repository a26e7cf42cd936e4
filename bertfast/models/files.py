"""Files that appear whole or not at all, and the library that reads and writes weights."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertfast._extras import install


def safetensors() -> Any:
    """The package, with its module for torch.

    Raises:
        ImportError: naming what to install where it is absent.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"checkpoints are stored by safetensors: {install('data')}") from error
    return safetensors


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file beside `path`, flush it to the disk, then give it that name.

    Raises:
        OSError: where the disk is full, say; whatever was at `path` before is still there, and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
