"""Names of classes: those of a checkpoint's head, those of the data, those that the user lists, and how they belong together.

A head that was trained for the same names goes on with them in its own order: its first output stays what it was. Where the names
are others, its weights mean nothing for them, and a new head takes its place. Either is said.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bertfast.tasks.lines import DataError

_GENERIC = re.compile(r"LABEL_\d+")
_SHOWN = 12


@dataclass(frozen=True)
class StoredHead:
    """The classifier of a checkpoint.

    labels: the names of its outputs, in order.
    problem_type: as in its configuration.
    other: why it is no head of the task; empty where it is one.
    """

    labels: tuple[str, ...]
    problem_type: str | None = None
    other: str = ""

    @property
    def is_generic(self) -> bool:
        """Whether its names say nothing: LABEL_0, or one name twice."""
        return all(map(_GENERIC.fullmatch, self.labels)) or len(set(self.labels)) < len(self.labels)


@dataclass(frozen=True)
class Classes:
    """The classes of a model that is to be trained.

    labels: their names in the order of the outputs.
    rows: which output of the checkpoint's head each was; empty for a new head.
    spelling: the name of a class by how the data has it, where these differ.
    notes: what a user should know of it.
    """

    labels: list[str]
    rows: tuple[int, ...] = ()
    spelling: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def listed(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def choose_classes(
    names: Sequence[str],
    usual: Sequence[str],
    head: StoredHead | None,
    chosen: Sequence[str] | None = None,
) -> Classes:
    """The classes to train, and what becomes of the checkpoint's head.

    Args:
        names: of the labels in the training data.
        usual: the classes in their order where the checkpoint says nothing.
        head: of the checkpoint.
        chosen: the classes in their order as the user lists them.
    """
    if chosen is not None and len(set(chosen)) < len(chosen):
        raise DataError(f"labels {','.join(chosen)}: a class stands twice; name each once")
    labels = list(chosen or usual)
    if head is None:
        return Classes(labels)
    if head.other or len(head.labels) < 2:
        why = head.other or "it has a single output"
        return Classes(
            labels, notes=(f"the checkpoint's head is not continued: {why}; a new one is trained for {listed(labels)}",)
        )
    places = _places(chosen or names, head)
    if places is None and chosen is not None and head.is_generic and len(chosen) == len(head.labels):
        places = list(range(len(labels)))  # what the names do not say the user does
    if places is None:
        return Classes(labels, notes=(_new_head(chosen or names, labels, head),))
    if chosen is not None:
        return _in_chosen_order(labels, places, head)
    return _in_stored_order(names, places, head)


def _places(names: Sequence[str], head: StoredHead) -> list[int] | None:
    """The output of the head for each name: of the same name, the same but for case, or its number. None: not all have one."""
    if not head.is_generic or all(map(_GENERIC.fullmatch, names)):
        for change in (str, str.casefold):
            stored = {change(label): place for place, label in enumerate(head.labels)}
            places = [stored.get(change(name), -1) for name in names]
            if len(stored) == len(head.labels) and -1 not in places and len(set(places)) == len(places):
                return places
    numbers = {str(place): place for place in range(len(head.labels))}
    return [numbers[name] for name in names] if all(name in numbers for name in names) else None


def _new_head(names: Sequence[str], labels: Sequence[str], head: StoredHead) -> str:
    begin = f"the checkpoint's head is not continued, a new one is trained for {listed(labels)}: "
    if head.is_generic:
        return f"{begin}its outputs are named {listed(head.labels)}, which does not say which is which; --labels can"
    strange = [name for name in names if name not in head.labels]
    return f"{begin}it is for {listed(head.labels)}, and {listed(strange)} is none of these"


def _in_chosen_order(labels: list[str], places: list[int], head: StoredHead) -> Classes:
    pairs = [
        f"{label} was its output {place} ({head.labels[place]})" for label, place in zip(labels, places, strict=True)
    ]
    dropped = [label for place, label in enumerate(head.labels) if place not in places]
    note = f"the checkpoint's head is continued in the order of --labels: {listed(pairs)}"
    return Classes(
        labels, tuple(places), notes=(note + (f"; dropped: {listed(dropped)}" if dropped else ""), *_warning(head))
    )


def _in_stored_order(names: Sequence[str], places: list[int], head: StoredHead) -> Classes:
    labels = [str(place) for place in range(len(head.labels))] if head.is_generic else list(head.labels)
    if all(map(_GENERIC.fullmatch, names)):
        labels = list(head.labels)
    spelling = {name: labels[place] for name, place in zip(names, places, strict=True) if name != labels[place]}
    note = f"the checkpoint's head is continued, with its classes in its order: {listed(labels)}"
    if spelling:
        note += f"; the data's {listed(f'{name} is {label}' for name, label in spelling.items())}"
    absent = [label for place, label in enumerate(labels) if place not in places]
    if absent:
        note += f"; the training data has no {listed(absent)}"
    return Classes(labels, tuple(range(len(labels))), spelling, (note, *_warning(head)))


def _warning(head: StoredHead) -> tuple[str, ...]:
    if head.problem_type != "multi_label_classification":
        return ()
    return ("the checkpoint's head was trained to give several labels at a time; here it learns to give one",)


def value_head(head: StoredHead | None) -> Classes:
    """The single output of a regression, and what becomes of the checkpoint's head."""
    usual = ["LABEL_0"]
    if head is None:
        return Classes(usual)
    if head.other or len(head.labels) > 1 or head.problem_type not in (None, "regression"):
        why = head.other or f"it is for the classes {listed(head.labels)}"
        return Classes(
            usual, notes=(f"the checkpoint's head is not continued: {why}; a new one is trained for a number",)
        )
    return Classes(list(head.labels), (0,), notes=("the checkpoint's head, which predicts a number, is continued",))
