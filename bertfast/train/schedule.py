"""Learning-rate schedules: pure functions of how many updates were made, the same as transformers' of these names."""

import math
from collections.abc import Callable


def _linear(progress: float) -> float:
    return max(0.0, 1.0 - progress)


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _constant(progress: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "constant": _constant}


def factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by in the update after `step` updates.

    Rises from 0 over `warmup` updates, as in BERT (so the very first update of a warm-up moves nothing), then follows
    `schedule` down to 0 at `total`.
    """
    if step < warmup:
        return step / max(1, warmup)
    return SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))
