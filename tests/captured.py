"""Captured calls on a CPU: the stand-in replays what a GPU would, and references compute what kernels would."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bertfast import _library
from bertfast.graphs import backend as backends
from bertfast.nn import device


@contextmanager
def captured_on_cpu(backend: backends.Backend | None = None) -> Iterator[backends.Backend]:
    """Models on the CPU run as on a GPU whose kernels are verified."""
    backend = backends.StandIn() if backend is None else backend
    with pytest.MonkeyPatch.context() as patch, backends.installed(backend):
        patch.setattr(device, "KINDS", device.KINDS | {"cpu"})
        patch.setattr(device, "runs_kernels", lambda: True)
        patch.setattr(_library, "resolved", lambda name, key: _library.meaning(name))
        yield backend
