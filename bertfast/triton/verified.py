<<<<<<< HEAD
"""Which Triton kernels have passed parity on real hardware, by architecture; written by `python -m benchmarks.gpu verified`.

Imports no Triton: models ask here whether their GPU path may be the default.
"""

import functools
import json
from collections.abc import Iterable
=======
"""Which ops' Triton kernels passed their parity tests on which GPU architecture, by a committed result of a real device.

`python -m benchmarks.gpu verified` writes the file from the lines of `make gpu`. This module imports no Triton.
"""

import json
from functools import cache
>>>>>>> 8927802311b1ff29233d10cc2f2b62a4c75b297d
from pathlib import Path

FILE = Path(__file__).with_name("verified.json")


<<<<<<< HEAD
@functools.cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def verified(op: str, arch: int) -> bool:
    """Whether the CUDA owner of `bertfast::op` passed parity on a GPU of this architecture, such as 90."""
    return op in _table().get(str(arch), {})


def missing(ops: Iterable[str], arch: int) -> list[str]:
    """Those of `ops` that never passed on this architecture."""
    return [op for op in ops if not verified(op, arch)]


def architectures(ops: Iterable[str]) -> list[int]:
    """Architectures on which every one of `ops` passed."""
    wanted = tuple(ops)
    return sorted(int(arch) for arch in _table() if not missing(wanted, int(arch)))
=======
@cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(FILE.read_text())


def verified(op: str, arch: int) -> bool:
    """Whether the kernels of `op`, a folder of bertfast/ops such as "packing", passed on `arch`, such as 90."""
    return op in _table().get(str(arch), {})


def verification(op: str, arch: int) -> dict[str, str] | None:
    """The date, device and commit of that result, or None."""
    return _table().get(str(arch), {}).get(op)
>>>>>>> 8927802311b1ff29233d10cc2f2b62a4c75b297d
