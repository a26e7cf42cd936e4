"""Entities in tag sequences and their F1, as conlleval (CoNLL-2000 and 2003) counts them.

Tags are IOB2 (B-PER I-PER O); IOBES and BILOU (E or L closes, S or U stands alone) are read as well. As in conlleval a sequence
that breaks the scheme still has entities: an I- after O or after another type begins one.
"""

from collections import Counter
from collections.abc import Sequence

# Both spellings of the same four roles.
_ROLES = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_BEGINS, _CONTINUES = frozenset("BS"), frozenset("IE")

Entity = tuple[str, int, int]
"""Type, first token, and the token after its last."""


def split_tag(tag: str) -> tuple[str, str]:
    """ "B-PER" to ("B", "PER"), "O" to ("O", ""); a role alone has the empty type.

    Raises:
        ValueError: the tag is neither O nor one of B, I, E, S, L, U with or without "-TYPE".
    """
    if tag == "O":
        return "O", ""
    role, _, kind = tag.partition("-")
    if role not in _ROLES:
        raise ValueError(f"the tag {tag!r} is neither O nor B-, I-, E-, S-, L- or U- with a type")
    return _ROLES[role], kind


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order."""
    found: list[Entity] = []
    start, before, kind_before = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        role, kind = split_tag(tag)
        other = kind != kind_before
        inside = before != "O"
        if inside and (before in "ES" or role not in _CONTINUES or other):
            found.append((kind_before, start, place))
        if role in _BEGINS or (role in _CONTINUES and (before in "OES" or other)):
            start = place
        before, kind_before = role, kind
    return found


def _quotients(right: int, predicted: int, expected: int) -> dict[str, float]:
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / expected if expected else 0.0,
        "f1": 2 * right / (predicted + expected) if predicted + expected else 0.0,
    }


def entity_scores(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], missed: Sequence[str] = ()
) -> dict[str, float]:
    """Precision, recall and F1 (0 to 1) of whole entities over all sentences, the accuracy of tags, and F1 of each type.

    An entity is right where its type and both ends are.

    Args:
        predicted, expected: the tags of each sentence.
        missed: types of further expected entities, which no tags can say and which therefore nobody finds.

    Returns:
        precision, recall, f1, accuracy, entities (how many are expected), and f1_TYPE for each type that occurs.

    Raises:
        ValueError: sentences differ in number or length, or a tag is unknown.
    """
    if len(predicted) != len(expected):
        raise ValueError(f"{len(predicted)} tagged sentences cannot be scored against {len(expected)}")
    counts = {name: Counter[str]() for name in ("right", "predicted", "expected")}
    counts["expected"].update(missed)
    tokens = right = 0
    for number, (found, wanted) in enumerate(zip(predicted, expected, strict=True)):
        if len(found) != len(wanted):
            raise ValueError(f"sentence {number} has {len(wanted)} tokens and {len(found)} predicted tags")
        here, there = set(entities(found)), set(entities(wanted))
        for name, group in (("right", here & there), ("predicted", here), ("expected", there)):
            counts[name].update(kind for kind, _, _ in group)
        tokens += len(wanted)
        right += sum(a == b for a, b in zip(found, wanted, strict=True))
    scores = _quotients(*(counts[name].total() for name in ("right", "predicted", "expected")))
    scores |= {"accuracy": right / tokens if tokens else 0.0, "entities": counts["expected"].total()}
    for kind in sorted(counts["expected"] | counts["predicted"]):
        scores[f"f1_{kind}"] = _quotients(*(counts[name][kind] for name in ("right", "predicted", "expected")))["f1"]
    return scores
