"""Finds a Python of each version: named in PYTHONS, on the path, or where pyenv keeps them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


def _candidates(version: str) -> Iterator[str]:
    yield from os.environ.get("PYTHONS", "").split()
    for name in (f"python{version}", "python3", "python"):
        if (path := shutil.which(name)) is not None:
            yield path
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))

    def age(folder: Path) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", folder.name))

    for folder in sorted(root.glob(f"versions/{version}*"), key=age, reverse=True):
        yield str(folder / "bin" / "python")


def version_of(python: str) -> str | None:
    """ "3.11" of an interpreter; None where it does not run or cannot make environments."""
    code = "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find(version: str) -> str | None:
    """The path of a Python of this version, the first that runs; None where there is none."""
    return next((python for python in _candidates(version) if version_of(python) == version), None)
