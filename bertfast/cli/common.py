"""What commands share: the console, one-line mistakes, JSON files."""

import json
import math
import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

# Tables keep their columns when the output is a file or a pipe.
console = Console(width=None if Console().is_terminal else 190)


def fail(message: str) -> typer.Exit:
    Console(stderr=True).print(f"bertfast: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(2)


def check_target(option: str, path: Path | None) -> None:
    """A file that cannot be written is found before minutes of measuring, not after them."""
    if path is None:
        return
    if path.is_dir():
        raise fail(f"{option} {path}: this is a folder, name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fail(f"{option} {path}: the folder cannot be made ({error.strerror}); choose another place") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise fail(f"{option} {path}: no permission to write there; choose another place")


def plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    console.print(f"wrote {path}", highlight=False)
