from bertfast.ops.dropout_add_norm.op import dropout_add_norm

__all__ = ["dropout_add_norm"]
