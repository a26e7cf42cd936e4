"""Dropout bits: one written counter scheme for every implementation, so that forward, backward and all devices agree.

Philox 4x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by a seed drawn
from torch's generator. Bits depend on where an element stands, never on the order of work, so nothing is stored for backward.

    rows       element (row, col):        counter (col >> 3, row low, row high, offset), 16-bit half number col & 7
    attention  query i, key j, head h:    counter (j >> 4, i, b * H + h, offset), byte number j & 15

Probabilities are therefore multiples of 1/65536 on rows and 1/256 in attention; kept values are divided by the
keep rate that results, so that expectations are exact.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 7


def new_rng(device: torch.device | str) -> Tensor:
    """Draw a fresh (seed, offset), int64 [2], from torch's default generator of `device`."""
    return torch.randint(0, 2**31 - 1, (2,), dtype=torch.int64, device=device)


def threshold_rows(p: float) -> int:
    """Halves below this are dropped: p in units of 1/65536."""
    return round(p * 65536)


def numbers_rows(p: float) -> tuple[int, float]:
    """What a kernel needs of p: (threshold, 1 / keep rate)."""
    return threshold_rows(p), 1.0 / keep_rate_rows(p)


def threshold_attention(p: float) -> int:
    """Bytes below this are dropped: p in units of 1/256, at least one unit."""
    return min(255, max(1, round(p * 256)))


def keep_rate_rows(p: float) -> float:
    """The share of elements that rows dropout keeps."""
    return 1.0 - threshold_rows(p) / 65536


def keep_rate_attention(p: float) -> float:
    """The share of probabilities that attention dropout keeps."""
    return 1.0 - threshold_attention(p) / 256


def check_probability(p: float, rng: Tensor | None, name: str) -> None:
    """ValueError unless 0 <= p < 1 and a state is given exactly when p > 0."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}: dropout_p must be in [0, 1), got {p}")
    # Dynamic shapes make p symbolic in torch.compile, which can branch on `p > 0.0` but not compare it with a bool.
    if (rng is None) if p > 0.0 else (rng is not None):
        raise ValueError(f"{name}: rng must be given when and only when dropout_p > 0, got dropout_p={p}, rng={rng}")


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product held in int64, in 16-bit pieces so that nothing overflows."""
    low_part = a * (constant & 0xFFFF)
    high_part = a * (constant >> 16)
    lower = low_part + ((high_part & 0xFFFF) << 16)
    return ((high_part >> 16) + (lower >> 32)) & _MASK, lower & _MASK


def philox(rng: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """Four 32-bit words for each counter (c0, c1, c2, offset), as int64 with a last dimension of 4."""
    seed, offset = rng[0], rng[1]
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2 = torch.broadcast_tensors(c0 & _MASK, c1 & _MASK, c2 & _MASK)
    c3 = (offset & _MASK).expand_as(c0)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), -1)


def keep_rows(rng: Tensor, rows: int, cols: int, p: float) -> Tensor:
    """Which elements of a [rows, cols] matrix dropout keeps, bool."""
    row = torch.arange(rows, device=rng.device)[:, None]
    group = torch.arange((cols + 7) // 8, device=rng.device)[None, :]
    words = philox(rng, group, row, row >> 32)  # [rows, groups, 4]
    halves = torch.stack((words & 0xFFFF, words >> 16), -1).flatten(1)[:, :cols]
    return halves >= threshold_rows(p)


def keep_attention(rng: Tensor, batch: int, heads: int, queries: int, keys: int, p: float) -> Tensor:
    """Which probabilities of [batch, heads, queries, keys] dropout keeps, bool."""
    head = torch.arange(batch * heads, device=rng.device)[:, None, None]
    query = torch.arange(queries, device=rng.device)[None, :, None]
    group = torch.arange((keys + 15) // 16, device=rng.device)[None, None, :]
    words = philox(rng, group, query, head)  # [batch * heads, queries, groups, 4]
    pieces = torch.stack([(words >> shift) & 0xFF for shift in (0, 8, 16, 24)], -1)
    return pieces.flatten(2).unflatten(0, (batch, heads))[..., :keys] >= threshold_attention(p)
