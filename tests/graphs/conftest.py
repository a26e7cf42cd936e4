"""The device that captured stacks run on."""

from collections.abc import Iterator

import pytest
from captured import Taping, captured_on_cpu


@pytest.fixture
def device() -> Iterator[Taping]:
    """A CPU that captures, in a tape that computes again what was captured."""
    with captured_on_cpu() as backend:
        yield backend
