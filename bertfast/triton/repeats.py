"""Launches that are made again with other tensors, without the launcher and the look-up of the compiled kernel in between.

The layers of a model launch the same kernels on the same sizes: grid, tile, constants and the compiled kernel are the first
layer's. `launch` tells the thread that asked (`noting`) what it launched; `repeat` makes that launch again, changed in named
places. Nothing here loads Triton.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

_NUMBERS = frozenset((int, float, bool, type(None)))


class Made(NamedTuple):
    """A launch that was made: its run-time arguments, and what launches the same on other ones of the same traits.

    Traits are what Triton specialises on: dtype and 16-byte alignment of a tensor, width, divisibility by 16 and 1 of an integer.
    """

    args: tuple[Any, ...]
    call: Callable[[Sequence[Any]], None]


noted: dict[int, list[Made]] = {}  # by thread; empty as a rule, and then a launch asks no further


@contextmanager
def noting() -> Iterator[list[Made]]:
    """Collect what this thread launches meanwhile; it is launched all the same. Not to be nested."""
    thread = get_ident()
    made = noted[thread] = []
    try:
        yield made
    finally:
        del noted[thread]


def note(args: tuple[Any, ...], call: Callable[[Sequence[Any]], None]) -> None:
    """Add a launch to this thread's, if it collects them."""
    made = noted.get(get_ident())
    if made is not None:
        made.append(Made(args, call))


class Repeat:
    """A launch to be made again: `repeat(*values)` takes the values of the places that vary, None where there was None."""

    def __init__(self, call: Callable[[Sequence[Any]], None], args: list[Any], places: list[int | None]) -> None:
        self._call, self._args = call, args
        self._moves = [(number, place) for number, place in enumerate(places) if place is not None]

    def __call__(self, *values: Any) -> None:
        args = self._args
        for number, place in self._moves:
            args[place] = values[number]
        self._call(args)


def repeat(made: list[Made], varying: Sequence[Any], fixed: Sequence[Any]) -> Repeat | None:
    """What makes the one launch of `made` again.

    Args:
        varying: tensors, floats and Nones that the next launch has others in place of, found among the arguments by identity.
        fixed: tensors that the next launch has too; so it has every number.

    Returns:
        None where that is not all that a launcher did: no launch or several, something copied on its way to the kernel, or
        one object in two places.
    """
    if len(made) != 1:
        return None
    args, call = made[0]
    identities = [id(arg) for arg in args]
    places: list[int | None] = []
    for value in varying:
        if value is None:
            places.append(None)
        elif identities.count(id(value)) == 1:
            places.append(identities.index(id(value)))
        else:
            return None
    known = {*map(id, varying), *map(id, fixed)}
    if any(identity not in known and type(arg) not in _NUMBERS for identity, arg in zip(identities, args, strict=True)):
        return None
    return Repeat(call, list(args), places)
