from bertfast.ops.masked_lm_loss.op import masked_lm_loss

__all__ = ["masked_lm_loss"]
