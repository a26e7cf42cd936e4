"""Training: configuration, optimizers, the loop, checkpoints, and the pre-training recipe."""
