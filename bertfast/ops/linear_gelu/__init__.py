from bertfast.ops.linear_gelu.op import linear_gelu

__all__ = ["linear_gelu"]
