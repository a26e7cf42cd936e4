"""The op of bertfast.ops.fp8_linear.op, called by the layers of an FP8 model through the dispatcher alone."""

from bertfast.ops.fp8_linear import op

__all__ = ["op"]
