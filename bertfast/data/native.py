"""The C++ side of the data pipeline."""

from typing import Any

from bertfast import _ext


def load() -> Any:
    """`bertfast._C`, or None where it is absent or was built without the data kernels."""
    extension = _ext.load()
    return extension if hasattr(extension, "DataCorpus") else None
