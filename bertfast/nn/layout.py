"""The two layouts of tokens that a layer takes."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Tokens [T, E] of several sequences: cu_seqlens [B + 1] int32, and a bound on the longest.

    read: [R] int64, rising, the tokens whose output anybody reads: a layer then returns these rows alone, [R, E].
    """

    cu_seqlens: Tensor
    max_seqlen: int
    read: Tensor | None = None


@dataclass(frozen=True)
class Biased(Packed):
    """Packed tokens to whose scores something is added that depends on places in the sequence alone. On a CPU, without gradients.

    bias: [H, S, S], S at least the longest sequence's length.
    """

    bias: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Padded:
    """Tokens [B, S, E], and a mask as `ops.attention_padded` takes it, or None."""

    mask: Tensor | None = None


Layout = Packed | Padded
