"""The ops of bertfast.ops.fp8_gelu.op, called by the layers of an FP8 model through the dispatcher alone."""

from bertfast.ops.fp8_gelu import op

__all__ = ["op"]
