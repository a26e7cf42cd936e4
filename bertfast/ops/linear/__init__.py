from bertfast.ops.linear.op import linear

__all__ = ["linear"]
