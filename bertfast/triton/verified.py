"""Which ops' Triton kernels passed their parity tests on which GPU architecture, by a committed result of a real device.

`python -m benchmarks.gpu verified` writes the file from the lines of `make gpu`. This module imports no Triton: models ask here
whether their GPU path may be the default.
"""

import json
from functools import cache
from pathlib import Path

from bertfast import _library

FILE = Path(__file__).with_name("verified.json")


@cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def folders() -> list[str]:
    """The folders of bertfast/ops whose launchers own CUDA, such as "packing"."""
    return sorted({path.split(":")[0].split(".")[2] for path in _library.owners("CUDA").values()})


def verified(op: str, arch: int) -> bool:
    """Whether the kernels of `op`, a folder of bertfast/ops such as "packing", passed on `arch`, such as 90."""
    return op in _table().get(str(arch), {})


def verification(op: str, arch: int) -> dict[str, str] | None:
    """The date, device and commit of that result, or None."""
    return _table().get(str(arch), {}).get(op)


def missing(arch: int) -> list[str]:
    """Folders whose kernels never passed on this architecture."""
    return [op for op in folders() if not verified(op, arch)]


def architectures() -> list[int]:
    """Architectures on which the kernels of every folder passed."""
    return sorted(int(arch) for arch in _table() if not missing(int(arch)))


FASTER_THAN_STOCK: frozenset[int] = frozenset()


def gate(arch: int) -> dict[str, str]:
    return {op: "its kernels never passed parity on this architecture" for op in missing(arch)}
