"""Writes the table of families into docs/fast.md from their records: python docs/site/families.py"""

import re
from pathlib import Path

from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family

PAGE = Path(__file__).parents[1] / "fast.md"
BEGIN, END = "<!-- written by docs/site/families.py -->\n", "<!-- end of what docs/site/families.py wrote -->\n"
_COLUMNS = (
    "`model_type`",
    "heads, all of which `optimize` takes",
    "last layer for first tokens alone",
    "`masked_head=True`",
    "stays padded in training",
    "positions",
)


def _short(names: list[str]) -> str:
    """Class names without the family's prefix."""
    return ", ".join(re.sub(r"^.*?(?=For|Model$|LMHead)", "", name) for name in sorted(names)) or "none"


def _row(family: Family) -> str:
    def named(*classes: type) -> str:
        return _short([each.__name__ for each in classes])

    cells = (
        f"`{family.model_type}`",
        _short(list(family.head_names)),
        named(*family.pooled_heads, *family.first_token_heads, *family.summary_heads),
        named(*family.masked_heads),
        named(*family.losses_over_padding),
        "counted from `padding_idx + 1` over tokens that are no padding"
        if family.positions_follow_tokens
        else "places of the padded row",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """A row for each family."""
    head = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join([*head, *map(_row, FAMILIES.values())]) + "\n"


def page(text: str) -> str:
    """The page with the table of today's records."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
