"""Writes the table of families into docs/fast.md from their records: python docs/site/families.py"""

import re
from pathlib import Path

from bertfast.convert.biased_encoder import FastBiasedEncoder
from bertfast.convert.families import FAMILIES
from bertfast.convert.families.record import Family

PAGE = Path(__file__).parents[1] / "fast.md"
BEGIN, END = "<!-- written by docs/site/families.py -->\n", "<!-- end of what docs/site/families.py wrote -->\n"


def _head(name: str) -> str:
    """A class's name without its family's."""
    return re.sub(r"^.*?(?=For|Model$|LMHeadModel$)", "", name)


def _marks(family: Family) -> dict[str, str]:
    """What each head of a family has, by its name without the family's."""
    lists = {
        "F": (*family.pooled_heads, *family.first_token_heads, *family.summary_heads),
        "M": family.masked_heads,
        "P": family.losses_over_padding,
    }
    marks = {_head(name): "fast" for name in family.head_names}
    for mark, heads in lists.items():
        for each in heads:
            marks[_head(each.__name__)] += f" {mark}"
    return marks


def table() -> str:
    """A row for each head and for what holds of all heads, a column for each family."""
    families = list(FAMILIES.values())
    marks = [_marks(family) for family in families]
    heads = sorted({head for each in marks for head in each}, key=lambda head: (head != "Model", head))
    rows = [[f"`{head}`", *(each.get(head, "") for each in marks)] for head in heads]
    rows.append(["positions", *("of tokens" if each.positions_follow_tokens else "of places" for each in families)])
    biased = [issubclass(each.encoder_role, FastBiasedEncoder) for each in families]
    rows.append(["layers, inference on a CPU", *("fast" for _ in families)])
    rows.append(["layers, training", *("stock" if each else "fast" for each in biased)])
    rows.append(["layers, on a GPU", *("stock" if each else "G" for each in biased)])
    head = ["", *(f"`{family.model_type}`" for family in families)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def page(text: str) -> str:
    """The page with the table of today's records."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
