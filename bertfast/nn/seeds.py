"""Seeds of a call's dropouts, drawn together."""

import torch
from torch import Tensor


def draw(count: int, device: torch.device | str) -> Tensor:
    """int64 [count, 2]: a (seed, offset) for each dropout of a call, from torch's default generator of `device`, in one draw."""
    return torch.randint(0, 2**31 - 1, (count, 2), dtype=torch.int64, device=device)
