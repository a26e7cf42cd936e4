from bertfast.ops.optimizer.op import adamw_step, gradient_norm, lamb_moments, lamb_step

__all__ = ["adamw_step", "gradient_norm", "lamb_moments", "lamb_step"]
