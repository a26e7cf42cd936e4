"""Which sequences of a padded batch are computed without their padding."""

from torch import Tensor

from bertfast import ops


def packing_of(real: Tensor | None, first_read: bool) -> tuple[str | None, ops.Packing | None]:
    """Why a batch stays padded, or else its packing; that is None where all tokens are real.

    Args:
        real: [B, S] bool, the real tokens; None for all.
        first_read: whether somebody reads position 0 of each sequence, real or not.
    """
    if real is None:
        return None, None
    known = ops.survey(real)
    if known.tokens == real.numel():
        return None, None
    if known.tokens == 0:
        return "no token is real", None
    if not known.begins and first_read:
        return "the pooler reads position 0, which is padding in some sequence", None
    return None, ops.pack(real, known)


def splitting_saves(real: Tensor) -> bool:
    """Whether a quarter of the work goes where only sequences that begin with padding, where real [B, S] is false, stay padded."""
    begins = real[:, 0]
    work = int(real[begins].sum()) + int((~begins).sum()) * real.shape[1]
    return 4 * work <= 3 * real.numel()
