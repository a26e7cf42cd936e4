"""The drop-in for Hugging Face models: optimize, restore, report."""

try:
    import transformers  # noqa: F401
except ImportError as error:
    from bertfast._extras import install

    raise ImportError(
        f"bertfast.optimize works on Hugging Face models and needs transformers: {install('hf')}"
    ) from error

from bertfast.convert.attention import register_attention
from bertfast.convert.optimize import UnsupportedModelError, optimize, restore
from bertfast.convert.report import Report, report

__all__ = ["Report", "UnsupportedModelError", "optimize", "register_attention", "report", "restore"]
