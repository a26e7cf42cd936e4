"""Which ops' Triton kernels passed their parity tests on which GPU architecture, by a committed result of a real device.

`python -m benchmarks.gpu verified` writes the file from the lines of `make gpu`. This module imports no Triton.
"""

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("verified.json")


@cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(FILE.read_text())


def verified(op: str, arch: int) -> bool:
    """Whether the kernels of `op`, a folder of bertfast/ops such as "packing", passed on `arch`, such as 90."""
    return op in _table().get(str(arch), {})


def verification(op: str, arch: int) -> dict[str, str] | None:
    """The date, device and commit of that result, or None."""
    return _table().get(str(arch), {}).get(op)
