"""The ops of bertfast.ops.fp8_norm.op, called by the layers of an FP8 model through the dispatcher alone."""

from bertfast.ops.fp8_norm import op

__all__ = ["op"]
