"""Markers in texts, such as [E1] and </e1>: which of them a tokenizer cuts into pieces."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bertfast.data.remarks import MARKER

if TYPE_CHECKING:
    from bertfast.data.tokenizer import Tokenizer

_SHOWN = 6
_SHARE = 1000  # a marker that recurs stands in two texts, and in one of so many


def cut_markers_note(texts: Iterable[str | None], tokenizer: "Tokenizer", *, specials: bool = True) -> str:
    """Which markers recur in these texts and become several pieces; empty where there are none.

    specials: whether BERT's own special tokens count, which are text wherever a text has them.
    """
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        counts.update(dict.fromkeys(MARKER.findall(text or "")).keys())
    cut = []
    for marker, count in counts.most_common():
        if count < 2 or count * _SHARE < total or (marker in tokenizer.specials and not specials):
            continue
        pieces = tokenizer.tokens(tokenizer.encode(marker).ids)
        if len(pieces) != 1 or pieces[0] == tokenizer.pieces[tokenizer.unk_id]:
            cut.append(f"{marker} in {count:,} texts ({' '.join(pieces)})")
    if not cut:
        return ""
    more = f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else ""
    return (
        f"markers are cut into pieces as any text is: {', '.join(cut[:_SHOWN])}{more}; name those "
        "with --special-tokens that are to be one token each"
    )
