"""Which sizes a graph is captured for, so that a few graphs serve calls of every size. Pure: integers in, integers out.

Tokens come in eight steps an octave and in multiples of 8 below 64, so that at most an eighth of a graph's rows are nobody's (more
below 57 tokens only, where rows cost next to nothing beside the reading of the weights). Sequences come in powers of two: an empty
sequence costs programs of the attention that end at once. The longest length chooses attention's tile and grid, so it is as coarse
as the tiles are.
"""

from typing import Literal, NamedTuple

_STEPS = 8  # of tokens in an octave
_SHORTEST = 16  # of the bounds on the longest sequence
_TILE = 128  # above it, bounds on the longest sequence are its multiples

# Which rows a call reads: all, each sequence's first, or so many named ones.
Read = None | Literal["first"] | int


class Bucket(NamedTuple):
    """The sizes of a captured call.

    Attributes:
        tokens: rows, of which those past a call's own lie in sequences of their own.
        sequences: bounds less one, of which those past a call's own are empty.
        longest: a bound on the longest sequence, those of the rest included.
        rest: sequences after `sequences` for the rows past a call's own.
        read: rows that are read: None for all, "first" for each sequence's first, or as many named ones.
    """

    tokens: int
    sequences: int
    longest: int
    rest: int
    read: Read


def rows(count: int) -> int:
    """The least bucket of at least `count` rows."""
    step = _step(count)
    return max(_STEPS, -(-count // step) * step)


def _step(count: int) -> int:
    octave = 1 << max(count - 1, 0).bit_length() >> 1  # the power of two below count
    return max(_STEPS, octave // _STEPS)


def sequences(count: int) -> int:
    """The least power of two of at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def longest(length: int, positions: int | None = None) -> int:
    """A bound on sequences of at most `length` tokens: a power of two from 16 to 128, then a multiple of 128.

    positions: of the model, which no bound need exceed; a given length beyond them stays as it is.
    """
    bound = -(-length // _TILE) * _TILE if length > _TILE else max(_SHORTEST, sequences(length))
    return bound if positions is None else max(length, min(bound, positions))


def bucket(tokens: int, sequence_count: int, length: int, read: Read, positions: int | None = None) -> Bucket:
    """The bucket of a call.

    Args:
        tokens: N, rows of the call, each in one of its sequences.
        sequence_count: how many sequences, empty ones included.
        length: a bound on the longest.
        read: what is read of its rows, a number where they are named.
        positions: of the model, or None where they bound nothing.
    """
    size, bound = rows(tokens), longest(length, positions)
    most = min(size, _step(size)) - 1  # rows past a call's own: with one more it would be in a smaller bucket
    named = read if read is None or read == "first" else rows(read)
    return Bucket(size, sequences(sequence_count), bound, -(-most // bound), named)
