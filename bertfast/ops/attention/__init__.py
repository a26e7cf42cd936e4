from bertfast.ops.attention.op import attention, attention_padded

__all__ = ["attention", "attention_padded"]
