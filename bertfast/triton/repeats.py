"""Launches that are made again with other tensors, without the launcher and the look-up of the compiled kernel in between.

The layers of a model launch the same kernels on the same sizes: grid, tile, constants and the compiled kernel are the first
layer's. `launch` tells the thread that asked (`noting`) what it launched; `repeat` makes that launch again, changed in named
places. Nothing here loads Triton.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor

from bertfast.triton import counters

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
    """Launches to be made again: `repeat(*values)` takes the values of the places that vary, None where there was None."""

    def __init__(
        self,
        launches: list[tuple[Callable[[Sequence[Any]], None], list[Any], list[tuple[int, int]]]],
        counting: Sequence[Tensor] = (),
    ) -> None:
        """counting: counters among the arguments (`triton.counters`)."""
        self._launches = launches  # call, arguments, and (number of a value, its place among them)
        self._counting = counting
        for _, args, moves in launches:
            _let_go(args, moves)

    def __call__(self, *values: Any) -> None:
        for call, args, moves in self._launches:
            for number, place in moves:
                args[place] = values[number]
            call(args)
            _let_go(args, moves)

    def may_run(self) -> bool:
        """Whether counters of these launches may be used now: they belong to a stream, or to captures that take turns."""
        return all(map(counters.are_current, self._counting))


def _let_go(args: list[Any], moves: list[tuple[int, int]]) -> None:
    """Hold no value of the last launches: autograd copies a gradient that anybody else holds."""
    for _, place in moves:
        args[place] = None


def repeat(
    made: list[Made],
    varying: Sequence[Any],
    fixed: Sequence[Any],
    *,
    scratch: int = 0,
    optional: Collection[int] = (),
) -> Repeat | None:
    """What makes the launches of `made` again.

    Args:
        varying: tensors, floats and Nones that the next launches have others in place of, found among the arguments by identity.
        fixed: tensors that the next launches have too; so they have every number.
        scratch: how many tensors a launcher may make for itself, each written by one of its launches and read by a later one, or by
            the same one where that counts which of its programs is the last (`triton.ending`). The next launches use their
            memory again, in the order of a stream; so they do with the counters.

    Returns:
        None where that is not all that a launcher did: no launch, something copied on its way to a kernel, one object in two
        places of a launch, or one that none of them takes.
    """
    known = {*map(id, varying), *map(id, fixed)}
    unknown: dict[int, int] = {}  # how many launches take a tensor of the launcher's own
    ended: set[int] = set()  # those in a launch that counts: it writes and reads them
    counting: dict[int, Tensor] = {}
    taken: set[int] = set()
    launches = []
    for args, call in made:
        places = {id(arg): place for place, arg in enumerate(args)}  # of one that is there twice, the last
        several = len(places) < len(args)
        moves = []
        for number, value in enumerate(varying):
            place = None if value is None else places.get(id(value))
            if place is None:
                continue
            if several and sum(arg is value for arg in args) > 1:
                return None
            taken.add(number)
            moves.append((number, place))
        own = [identity for identity in places.keys() - known if type(args[places[identity]]) not in _NUMBERS]
        counts = {
            identity: arg
            for identity in own
            if isinstance(arg := args[places[identity]], Tensor) and counters.are_counters(arg)
        }
        counting |= counts
        for identity in own:
            if identity not in counts:
                unknown[identity] = unknown.get(identity, 0) + 1
        if counts:
            ended.update(own)
        launches.append((call, list(args), moves))
    needed = {number for number, value in enumerate(varying) if value is not None} - set(optional)
    if not launches or not needed <= taken or len(unknown) > scratch:
        return None
    if any(count < 2 and identity not in ended for identity, count in unknown.items()):
        return None
    return Repeat(launches, list(counting.values()))
