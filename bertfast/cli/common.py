"""What commands share: the console, one-line mistakes, JSON files."""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from bertfast.train.launcher import is_main

# Tables keep their columns when the output is a file or a pipe.
console = Console(width=None if Console().is_terminal else 190)


SECONDS_FOR_FIRST_RANK = 5.0


def fail(message: str) -> typer.Exit:
    """The exit of a command that says why on one line, though a library's error within may have several."""
    message = re.sub(r"\s*[\r\n]\s*", " ", message.strip())
    Console(stderr=True).print(f"bertfast: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(2)


def fail_on_rank(message: str) -> typer.Exit:
    """`fail` under torchrun, once for an error that all ranks of a machine have.

    The first one prints it, and torchrun then ends the others; one that is still there after a while has an error of its own.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(SECONDS_FOR_FIRST_RANK)
    return fail(message)


def note(text: str) -> None:
    Console(stderr=True).print(f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def notes() -> Iterator[None]:
    """What libraries and this package warn users of is one line each, without the place in the code; once under torchrun."""
    first = is_main()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, UserWarning):
                usual(message, category, *place)
            elif first:
                note(" ".join(str(message).split()))

        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextmanager
def one_line(*errors: type[Exception]) -> Iterator[None]:
    """What a user can fix, errors of these kinds, ends the command as one line."""
    try:
        yield
    except errors as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise fail(f"{error.filename}: {error.strerror}") from None
        raise fail(str(error)) from None


@contextmanager
def training() -> Iterator[None]:
    """Every expected failure of a training ends as one line and its own exit status, once under torchrun."""
    from bertfast.train.errors import StoppedError, TrainingError

    try:
        with notes():
            yield
    except StoppedError as error:  # of all ranks at once; torchrun waits for them
        if is_main():
            fail(str(error))
        raise typer.Exit(error.exit_status) from None
    except TrainingError as error:
        fail_on_rank(str(error))
        raise typer.Exit(error.exit_status) from None
    except (ValueError, ImportError, OSError) as error:
        raise fail_on_rank(str(error)) from None


def tell_end(outcome: Any, out: Path) -> None:
    """The last line of a training: where its model is, or how to go on."""
    if not outcome.finished:
        console.print(f"stopped at step {outcome.step} of {outcome.total_steps} as asked; go on with --resume")
    else:
        console.print(f"done after {outcome.step} steps; the model is in {out / 'model'}", highlight=False)


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
