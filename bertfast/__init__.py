"""bertfast: fused kernels and unpadding for BERT encoders, the same numbers, faster.

model = bertfast.optimize(model)    # a Hugging Face BERT, in place
print(bertfast.report(model))       # which layers are fast, and why not
bertfast.restore(model)             # exactly as it was
"""

import importlib
from typing import TYPE_CHECKING, Any

from bertfast import nn, ops

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "UnsupportedModelError",
    "__version__",
    "models",
    "nn",
    "ops",
    "optimize",
    "register_attention",
    "report",
    "restore",
]

if TYPE_CHECKING:
    from bertfast import models as models
    from bertfast.convert.attention import register_attention as register_attention
    from bertfast.convert.optimize import UnsupportedModelError as UnsupportedModelError
    from bertfast.convert.optimize import optimize as optimize
    from bertfast.convert.optimize import restore as restore
    from bertfast.convert.report import report as report
    from bertfast.encoding import Encoder as Encoder


def __getattr__(name: str) -> Any:
    # convert needs transformers, the rest does not; it is imported when first asked for.
    if name in ("UnsupportedModelError", "optimize", "register_attention", "report", "restore"):
        from bertfast import convert

        return getattr(convert, name)
    if name == "Encoder":
        from bertfast.encoding import Encoder

        return Encoder
    if name == "models":  # quick to import without: most programs use optimize alone
        return importlib.import_module("bertfast.models")
    raise AttributeError(f"module 'bertfast' has no attribute {name!r}")
